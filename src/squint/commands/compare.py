"""`squint compare`: two systems of one run or of two, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from squint._checks import InputError, check_number
from squint._files import check_output
from squint.evaluation.equivalence import MARGIN, Equivalence, equivalence
from squint.study.known import check_labels, outcomes_of


@dataclass(frozen=True)
class CompareOptions:
    """Compare two systems on the same images: what each keeps, and the difference with its paired interval.

    Settings that both know are compared: the clean images, every attack of a run, and its evidence. The
    intervals of two accuracies may overlap where that of their difference on the same images does not hold
    zero: this is what says which system is better. Evidence does not say what was spent on finding it.

    Examples:
      squint compare runs/digits:stochastic runs/digits:deterministic
      squint compare runs/a runs/b
      squint compare runs/a:stochastic members/evidence/stochastic-member-1.npz
    """

    first: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """RUN:SYSTEM, RUN for its headline's system, the name of a shipped model, or a file of evidence."""
    second: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """What it is compared with, likewise."""
    margin: float = MARGIN
    """Difference that would matter, a fraction; the verdict says whether it is shown or ruled out."""
    output: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Compared:
    """One setting: accuracies on the images that both have, as fractions, and their paired difference."""

    setting: str
    first: float
    second: float
    difference: Equivalence

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        found = {"setting": self.setting, "first": self.first, "second": self.second}
        return found | {"difference": self.difference.to_json()}

    def __str__(self) -> str:
        """Return one line."""
        low, high = self.difference.ci95
        return (
            f"{self.setting}: {self.first:.1%} against {self.second:.1%}, "
            f"{100 * (self.first - self.second):+.1f} points (paired 95 % {100 * low:+.1f} to "
            f"{100 * high:+.1f}; {self.difference.images} images): {self._verdict()}"
        )

    def _verdict(self) -> str:
        margin = f"{100 * self.difference.margin:g} points"
        return {
            "helps": f"the first keeps more, by over {margin}",
            "hurts": f"the second keeps more, by over {margin}",
            "equivalent": f"alike to within {margin}",
        }.get(self.difference.verdict, f"whether they differ by {margin} is not settled")


def compare(options: CompareOptions) -> list[Compared]:
    """Return one row per setting that both know; the difference is the first's less the second's.

    Raises:
        squint.InputError: an operand that is neither a run's system nor evidence, other images, or no setting
            that both know.
    """
    check_output(options.output)
    check_number("margin", options.margin, 0, 1, open_low=True)
    first, second = (outcomes_of(word) for word in (options.first, options.second))
    for known, other in ((first.data, second.data), (first.images, second.images)):
        if known and other and known != other:
            raise InputError(f"{first.name} and {second.name} are on different images; allowed: the same")
    check_labels(first, second)
    shared = [setting for setting in first.shares if setting in second.shares]
    if not shared:
        raise InputError(
            f"{first.name} knows {', '.join(first.shares)}, {second.name} knows {', '.join(second.shares)}; "
            "allowed: systems with a setting in common"
        )
    rows = []
    for setting in shared:
        a, b = first.shares[setting], second.shares[setting]
        both = min(len(a), len(b))
        a, b = a[:both], b[:both]
        difference = equivalence(a - b, options.margin)
        rows.append(Compared(setting, float(a.mean()), float(b.mean()), difference))
    return rows
