"""`squint compare`: two systems of one run or of two, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from squint._checks import InputError, check_choice, check_number, format_fraction
from squint._files import check_output
from squint.evaluation.equivalence import MARGIN, Equivalence, equivalence
from squint.evaluation.evidence_files import load_evidence
from squint.evaluation.records import LADDER
from squint.report.results import parse_results
from squint.study.folder import read_config, read_results
from squint.study.hypothesis import EQUAL_PASSES
from squint.study.keeping import data_digests
from squint.study.pairs import settings_of
from squint.zoo import resolved


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


@dataclass(frozen=True)
class _Outcomes:
    """What one operand knows: shares of correct deployments by setting, and of its images what is known."""

    name: str
    shares: Mapping[str, Tensor]
    data: str | None = None
    images: str | None = None
    labels: Tensor | None = None


def compare(options: CompareOptions) -> list[Compared]:
    """Return one row per setting that both know; the difference is the first's less the second's.

    Raises:
        squint.InputError: an operand that is neither a run's system nor evidence, other images, or no setting
            that both know.
    """
    check_output(options.output)
    check_number("margin", options.margin, 0, 1, open_low=True)
    first, second = (_outcomes_of(word) for word in (options.first, options.second))
    for known, other in ((first.data, second.data), (first.images, second.images)):
        if known and other and known != other:
            raise InputError(f"{first.name} and {second.name} are on different images; allowed: the same")
    if first.labels is not None and second.labels is not None:
        both = min(len(first.labels), len(second.labels))
        if not torch.equal(first.labels[:both], second.labels[:both]):
            raise InputError(f"{first.name} and {second.name} are on different images; allowed: the same")
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


def _outcomes_of(word: str) -> _Outcomes:
    if word.endswith(".npz"):
        return _evidence(Path(word), word)
    # A folder may have a colon in its name.
    place, system = word, ""
    if ":" in word and not Path(word).is_dir():
        place, _, system = word.rpartition(":")
    run = resolved(Path(place))
    recipe = read_config(run)
    name = system or recipe.headline_system
    check_choice("system", name, recipe.systems)
    spent = _presets(run, name)
    shares = {spent.get(setting, setting): row for setting, row in settings_of(run, name).items()}
    labels, evidence = None, run / "evidence" / f"{name}.npz"
    if evidence.is_file():
        found = _evidence(evidence, word)
        shares.update(found.shares)
        labels = found.labels
    if not shares:
        raise InputError(f"{run} has no outcomes of {name} yet: squint run --resume makes them")
    images = data_digests(run).get(recipe.attack.split)
    data = f"{recipe.dataset}, {recipe.attack.split}"
    return _Outcomes(f"{place}:{name}", shares, data, images, labels)


def _presets(run: Path, system: str) -> dict[str, str]:
    """Return settings with what was spent on them, where one name stands for several budgets."""
    if not (run / "results.json").is_file():
        return {}
    records = parse_results(read_results(run), str(run / "results.json")).records
    own = [each for each in records if each.system == system]
    return {
        f"{each.attack} {each.eps}": f"{each.attack} {each.eps}, {each.preset}"
        for each in own
        if each.attack == LADDER or each.preset == EQUAL_PASSES
    }


def _evidence(path: Path, name: str) -> _Outcomes:
    evidence = load_evidence(path)
    if not torch.equal(evidence.index, torch.arange(len(evidence.index))):
        raise InputError(f"{path} is not of the first images of its data; allowed: evidence of a ladder")
    setting = f"evidence {format_fraction(evidence.eps)}"
    return _Outcomes(name, {setting: evidence.correct.double()}, labels=evidence.labels)
