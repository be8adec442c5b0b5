"""`squint extrapolate`: a ladder's figure on few images, for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from squint._checks import InputError
from squint._files import check_output
from squint.study.identity import check_records
from squint.study.known import outcomes_of, records_of
from squint.study.whole_set import Extrapolated, extrapolated


@dataclass(frozen=True)
class ExtrapolateOptions:
    """Estimate what a ladder on some images would leave of all, by a cheap attack that all have met.

    The first images of a test set may be easier than the rest. Where a plain attack was run on all of them,
    the regression estimator corrects for that, and its interval is narrower by as much as the two attacks
    agree image by image. It supposes that the images are in no order and that all files are of the same
    weights, and it is an estimate, not a record.

    Examples:
      squint attack runs/a --attacks pgd --eps 5/255 --images 10000 --output all.json
      squint extrapolate runs/a all.json
      squint extrapolate cifar10 all.json
      squint extrapolate runs/a all.json --evidence standard/evidence/stochastic.npz
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """RUN:SYSTEM, RUN for its headline's system, or a shipped model: its study ran the plain attack."""
    records: tyro.conf.Positional[Path]
    """File of squint attack --output: the plain attack on more images, from the first."""
    evidence: tuple[Path, ...] = ()
    """Evidence of further ladders on the same system and images."""
    output: Path | None = None
    """JSON file for the figures."""


def extrapolations(options: ExtrapolateOptions) -> list[Extrapolated]:
    """Return one row per ladder and record of more images.

    Raises:
        squint.InputError: a file that is not what it should be, or nothing in common.
    """
    check_output(options.output)
    known = outcomes_of(options.run)
    files = [(str(path), path) for path in options.evidence]
    records = records_of(options.records, known.system)
    if known.weights is not None:
        check_records(options.records, records, known.weights)
    rows = extrapolated(known, records, files)
    if not rows:
        raise InputError(
            f"{known.name} knows {', '.join(known.shares)}; needed: a ladder on ten images or more, and the "
            f"plain attack of {options.records} at its radius on fewer images than there"
        )
    return rows
