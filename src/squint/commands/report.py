"""`squint report`: the report of a run again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ReportOptions:
    """Write the report of a run folder again and print its table."""

    run: tyro.conf.Positional[Path]
    """Run folder with a results.json."""
