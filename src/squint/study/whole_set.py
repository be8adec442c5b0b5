"""What a run's ladder would leave of all images, by a cheap attack that was run on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squint._checks import InputError
from squint.evaluation.extrapolation import FEWEST, Extrapolation, extrapolate
from squint.evaluation.records import LADDER, attack_title
from squint.study.identity import WEIGHTS
from squint.study.known import EVIDENCE, Outcomes, check_labels, evidence_outcomes

_BUDGET = ("preset", "steps", "eot", "restarts", "draws", "tier")


@dataclass(frozen=True)
class Extrapolated:
    """One ladder's figure on the images that it was climbed on, and what it says of all; fractions.

    Attributes:
        setting: the ladder, or its evidence.
        sample: accuracy on its images.
        by: the cheap attack.
        by_sample: accuracy under that on the same images.
        by_all: accuracy under that on all images.
        estimate: of the ladder on all images.
    """

    setting: str
    sample: float
    by: str
    by_sample: float
    by_all: float
    estimate: Extrapolation

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "estimate": self.estimate.to_json()}

    def __str__(self) -> str:
        """Return one line."""
        low, high = self.estimate.ci95
        return (
            f"{self.setting}: {self.sample:.1%} of {self.estimate.images} images; of all "
            f"{self.estimate.total:,} it would be {self.estimate.share:.1%} (95 % {100 * low:.1f} to "
            f"{100 * high:.1f}), by {self.by}, which leaves {self.by_sample:.1%} of these and "
            f"{self.by_all:.1%} of all (correlation {self.estimate.correlation:.2f})"
        )


def extrapolated(
    known: Outcomes, further: Sequence[dict[str, Any]], evidence: Sequence[tuple[str, Path]]
) -> list[Extrapolated]:
    """Return one row per record of a plain attack on more images and ladder at the same radius.

    Args:
        known: a run's outcomes, with the same attack on the first of those images.
        further: records of the system (`records_of`); those of ladders, and those on no more images, are
            passed over.
        evidence: further ladders on the same system and images: what they are called, and their files.

    That all of it is of the same weights was checked where the records say so (`identity.check_records`).

    Raises:
        squint.InputError: evidence of another system or other images, or see `unlike`.
    """
    ladders = [
        (_title(setting), _radius(setting), row)
        for setting, row in known.shares.items()
        if setting.split()[0] in (LADDER, EVIDENCE)
    ]
    for name, path in evidence:
        found = evidence_outcomes(path, str(path))
        if found.system != known.system:
            raise InputError(f"{found.name} is of {found.system}; allowed: evidence of {known.system}")
        check_labels(found, known)
        ladders += [(name, _radius(setting), row) for setting, row in found.shares.items()]
    rows = []
    for record in further:
        by = f"{record['attack']} {record['eps']}"
        cheap = known.shares.get(by)
        if record["attack"] == LADDER or cheap is None or record["n"] <= len(cheap):
            continue
        if other := unlike(known, record):
            raise InputError(other)
        for setting, eps, row in ladders:
            n = min(len(row), len(cheap))
            if n < FEWEST or eps != record["eps"]:
                continue
            estimate = extrapolate(row[:n], cheap[:n], record["robust_accuracy"], record["n"])
            means = float(row[:n].mean()), float(cheap[:n].mean())
            rows.append(Extrapolated(setting, means[0], by, means[1], record["robust_accuracy"], estimate))
    return rows


def ladder_title(preset: str, eps: str) -> str:
    """Return what a ladder of this budget is called: less than `standard` is never called the ladder."""
    title = attack_title(LADDER, preset)
    return f"{title} {eps}" if title == preset else f"{title} {eps} ({preset})"


def _title(setting: str) -> str:
    """Return what people read for a setting: "quick 5/255" for "ladder 5/255, quick"."""
    kind, _, preset = setting.partition(", ")
    return ladder_title(preset, kind.split()[1]) if preset else setting


def _radius(setting: str) -> str:
    """Return the eps of a setting such as "ladder 5/255, quick"."""
    return setting.partition(",")[0].split()[1]


def unlike(known: Outcomes, record: dict[str, Any]) -> str:
    """Return in what a record of a plain attack is not the run's own on fewer images; nothing where it is."""
    for own in known.records:
        if (own["attack"], own["eps"]) == (record["attack"], record["eps"]):
            # A record that does not name its weights is of another training, where its seed is another.
            for key in (*_BUDGET, *(() if WEIGHTS in record.get("details", {}) else ("seed",))):
                if own.get(key) != record[key]:
                    return (
                        f"{record['attack']} at {record['eps']} on {record['n']} images had {key} "
                        f"{record[key]}; allowed: {own.get(key)}, as in {known.name}"
                    )
            return ""
    by = f"{record['attack']} at {record['eps']}"
    return f"{known.name} has no record of {by} yet: squint run --resume makes it"
