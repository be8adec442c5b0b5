"""What the active tests' measurements must be, as findings where they are not."""

from __future__ import annotations

import math

from squint._checks import format_fraction
from squint.evaluation.records import Finding

PLANTED_SHARE = 0.95
FEWEST_PLANTED = 10
"""Planted points without which the share found says nothing."""
SOUND_SHARE = 0.5
"""Share of the images tried in which a point must be sound. Unsound ones leave the count, and whether a point
is sound can hang on the gradient: those left could be the ones that any attack finds."""
LARGEST_GAIN = 0.01
CONTROL_LEFT = 0.05
"""Accuracy that the control may keep: an undefended network behind 8-bit noise goes to about nothing."""


def judge_planted(found: int, total: int, tried: int) -> list[Finding]:
    """Return a finding if too few points could be planted, or less than 95 % of them were found."""
    needed = max(FEWEST_PLANTED, math.ceil(SOUND_SHARE * tried))
    if total < needed:
        return [
            Finding(
                "planted_unavailable",
                f"adversarial points could be planted in {total} of {tried} images; needed: {needed}. There "
                "are too few images, no linear layer to refit, or noise that hides one corner of the ball",
                {"total": total, "tried": tried, "needed": needed},
            )
        ]
    if found >= PLANTED_SHARE * total:
        return []
    return [
        Finding(
            "planted_missed",
            f"the attack found {found} of {total} planted adversarial points; needed: {PLANTED_SHARE:.0%}",
            {"found": found, "total": total},
        )
    ]


def judge_gain(gain: float | None) -> list[Finding]:
    """Return a finding if twice the effort costs a point or more, or was not tried."""
    if gain is None:
        return [
            Finding("no_convergence_gate", "no attack with twice the effort was given: convergence unknown")
        ]
    if gain < LARGEST_GAIN:
        return []
    return [
        Finding(
            "not_converged",
            f"twice the steps, restarts and draws cost another {gain:.1%} of accuracy; allowed: below "
            f"{LARGEST_GAIN:.0%}",
            {"gain": gain},
        )
    ]


def judge_control(noisy: float, bare: float, eps: float) -> list[Finding]:
    """Return a finding if noise that defends nothing keeps accuracy, or the bare network keeps it too."""
    if bare > CONTROL_LEFT:
        # Noise cannot be seen to hold an attack up that leaves the bare network standing.
        return [
            Finding(
                "control_uninformative",
                f"the attack leaves an undefended network {bare:.1%} at eps {format_fraction(eps)}; needed "
                f"for the noise control: {CONTROL_LEFT:.0%}",
                {"noisy": noisy, "bare": bare, "eps": format_fraction(eps)},
            )
        ]
    if noisy <= max(bare + LARGEST_GAIN, CONTROL_LEFT):
        return []
    return [
        Finding(
            "noise_control",
            f"at eps {format_fraction(eps)} an undefended network behind 8-bit input noise keeps {noisy:.1%},"
            f" without noise {bare:.1%}: the attack is held up by noise that defends nothing",
            {"noisy": noisy, "bare": bare, "eps": format_fraction(eps)},
        )
    ]


def notes_on(most: int, draws: int) -> tuple[str, ...]:
    """Return what a reader should know of the draws that planted copies needed."""
    if most <= draws:
        return ()
    return (
        f"points were planted in copies that answer by the mean of up to {most} draws, since noise hides them"
        f" from the {draws} that are deployed",
    )
