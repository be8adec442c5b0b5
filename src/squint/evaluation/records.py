"""Records: one figure with everything that is needed to judge it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from squint._checks import InputError, format_fraction, parse_fraction

LADDER = "ladder"
"""What records of every budget of rungs have for their attack."""
WHOLE_LADDERS = ("standard", "exhaustive")
"""Budgets with all rungs and the active tests."""


@dataclass(frozen=True)
class Finding:
    """A red flag: why a figure cannot be trusted, with the measurement that says so."""

    kind: str
    message: str
    measured: Mapping[str, Any] = field(default_factory=dict)


NO_ACTIVE_TESTS = Finding(
    "no_active_tests",
    "planted adversarial points and the convergence gate were not run: this preset does not settle "
    "robustness",
)


def finite(value: float) -> float | None:
    """Return the value, or None for one that JSON cannot hold."""
    return value if math.isfinite(value) else None


def attack_title(attack: str, preset: str) -> str:
    """Return the attack's name; a ladder of fewer rungs is called by that of its budget."""
    return preset if attack == LADDER and preset not in WHOLE_LADDERS else attack


@dataclass(frozen=True)
class Record:
    """One attack setting on one system; accuracies are shares of images, `eps` is written as a fraction.

    `robust_accuracy` is the deployed rule with `draws` draws, `single_draw_accuracy` one draw of all members,
    `persistent_accuracy` the deployed rule against ten submissions of each image.
    """

    system: str
    attack: str
    preset: str
    norm: str
    eps: str
    steps: int
    eot: int
    restarts: int
    n: int
    draws: int
    seed: int
    clean_accuracy: float
    clean_ci95: tuple[float, float]
    robust_accuracy: float
    ci95: tuple[float, float]
    single_draw_accuracy: float
    persistent_accuracy: float | None
    persistent: dict[str, float | None]
    clean_persistent: dict[str, float | None]
    tier: str
    seconds: float = 0.0
    red_flags: tuple[Finding, ...] = ()
    trusted: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The attack and its budget as people read them: less than `standard` is never called the ladder."""
        name = attack_title(self.attack, self.preset)
        return name if name == self.preset else f"{name} ({self.preset})"

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        plain = asdict(self)
        plain["red_flags"] = [asdict(flag) for flag in self.red_flags]
        return plain


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one attack setting did, image by image.

    Attributes:
        attack: name of the attack.
        eps: radius.
        adversarial: images (n, ...), float in [0, 1].
        correct: share of correct deployments (n,), float64.
    """

    attack: str
    eps: float
    adversarial: Tensor
    correct: Tensor


@dataclass(frozen=True, eq=False)
class RobustnessReport:
    """All records of one system, its clean outcome and, per setting, every image's outcome."""

    system: str
    records: tuple[Record, ...]
    outcomes: tuple[Outcome, ...]
    clean_correct: Tensor

    def record(self, eps: float | str, attack: str | None = None) -> Record:
        """Return the record of one radius (and attack).

        Raises:
            squint.InputError: there is none.
        """
        written = format_fraction(parse_fraction("eps", eps, high=math.inf))
        for record in self.records:
            if record.eps == written and attack in (None, record.attack):
                return record
        raise InputError(
            f"no record{'' if attack is None else f' of {attack}'} at eps {written}; there are "
            + ", ".join(f"{record.attack} at {record.eps}" for record in self.records)
        )

    def outcome(self, eps: float | str, attack: str) -> Outcome:
        """Return the per-image outcome of one setting.

        Raises:
            squint.InputError: there is none.
        """
        written = format_fraction(parse_fraction("eps", eps, high=math.inf))
        for outcome in self.outcomes:
            if format_fraction(outcome.eps) == written and outcome.attack == attack:
                return outcome
        raise InputError(f"no outcome of {attack} at eps {written}")

    def __str__(self) -> str:
        """Return one line per record, for people, and one more on what else a ladder measured."""
        lines = []
        for r in self.records:
            verdict = "trusted" if r.trusted else "UNTRUSTED: " + "; ".join(f.message for f in r.red_flags)
            lines.append(
                f"{r.system}: clean {r.clean_accuracy:.1%}, {r.title} at eps {r.eps} "
                f"{r.robust_accuracy:.1%} [{r.ci95[0]:.1%}, {r.ci95[1]:.1%}], n={r.n}, S={r.draws}, "
                f"steps={r.steps}, eot={r.eot}, seed={r.seed}; {verdict}"
            )
            if "margins" in r.details:
                lines.append(_ladder_line(r.details))
            lines.extend(f"  {note}" for note in r.details.get("active_tests", {}).get("notes", ()))
        return "\n".join(lines)


def _ladder_line(details: Mapping[str, Any]) -> str:
    known = details["known_randomness_accuracy"]
    beside = ""
    if "plain_pgd_accuracy" in details:
        beside = (
            f"; first rung {details['first_rung_accuracy']:.1%}, PGD-20 of 10 draws "
            f"{details['plain_pgd_accuracy']:.1%}"
        )
    return (
        f"  of the worst points {details['margins']['below_0.1']:.1%} have a margin within 0.1; "
        f"in 8-bit images {details['uint8_accuracy']:.1%}; "
        f"known randomness {'does not apply' if known is None else f'{known:.1%}'}{beside}"
    )
