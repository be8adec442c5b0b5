"""`squint publish`: one system of a run as a folder that others can verify and try to break."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class PublishOptions:
    """Write one system of a run as a small folder: packed weights, records, evidence, images, outcomes, card.

    Examples:
      squint publish runs/digits --output shipped/digits
      squint verify shipped/digits
    """

    run: tyro.conf.Positional[Path]
    """Run folder whose study climbed the ladder (--attack.ladder)."""
    output: Path
    """Folder to write; it must be new."""
    system: str | None = None
    """Name of the system; default: the headline's."""
    records: tuple[Path, ...] = ()
    """Files of squint attack --output on these weights (more images, other attacks) for card and records."""
    data_dir: str | None = None
    """Folder with the data set's files; default: the run's, or the cache."""
