"""What the active tests measure, and what that must be, as findings where it is not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from squint._checks import format_fraction
from squint.evaluation.records import Finding

PLANTED_SHARE = 0.95
FEWEST_PLANTED = 10
"""Planted points without which the share found says nothing."""
SOUND_SHARE = 0.5
"""Share of the images tried in which a point must be sound. Unsound ones leave the count, and whether a point
is sound can hang on the gradient: those left could be the ones that any attack finds."""
LARGEST_GAIN = 0.01
_ROUNDING = 1e-9
CONTROL_CLEAN = 0.25
"""Accuracy without attack that the control needs: a network that errs anyhow has nothing to lose."""
CONTROL_LEFT = 0.05
"""Accuracy that the control may keep: an undefended network behind 8-bit noise goes to about nothing."""


@dataclass(frozen=True)
class ActiveTests:
    """What the active tests of an attack on a model found; without `passed` no figure is trusted.

    Attributes:
        planted_found: planted adversarial points found.
        planted_total: planted points of which the construction succeeded.
        planted_tried: images in whose ball one was to be planted.
        planted_steered: sound points of which the corner is no random one, but was found with gradients.
        planted_draws: most draws that a planted copy averages: the model's own unless noise hid points.
        convergence_gain: accuracy lost to twice the steps, restarts and draws; None without a doubled attack.
        convergence_error: standard error of that, over the survivors that were tested.
        convergence_survivors: images that the attack had not retired.
        convergence_tested: the first of them, which twice the effort was spent on.
        control_accuracy: accuracy left to an undefended network behind 8-bit input noise; None without one.
        control_bare: accuracy left to it without the noise.
        control_eps: radius of both, written as a fraction: the first of eps, 2 eps, 4 eps ... up to ½ at
            which the network without noise keeps no more than 5 %.
        notes: what a reader of the figure should know, in words; nothing that speaks against it.
        passed: at least 95 % of the planted points were found, the gate was passed, and so was the control
            where there is one.
        findings: what failed, or could not be run.
    """

    planted_found: int
    planted_total: int
    planted_tried: int
    planted_draws: int
    convergence_gain: float | None
    control_accuracy: float | None
    passed: bool
    findings: tuple[Finding, ...]
    control_bare: float | None = None
    control_eps: str | None = None
    notes: tuple[str, ...] = ()
    planted_steered: int | None = None
    convergence_error: float | None = None
    convergence_survivors: int | None = None
    convergence_tested: int | None = None


@dataclass(frozen=True)
class Gain:
    """What twice the effort took, as a share of all images, and of how many that is known."""

    lost: float
    error: float | None
    survivors: int
    tested: int


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


def gained(losses: Tensor, survivors: int, images: int) -> float:
    """Return the accuracy lost to twice the effort, by what the survivors that were tried lost.

    Where all were tried, one image lost of a hundred is a point, and not less of one by rounding.

    Args:
        losses: (tried,) each one's share of deployments lost.
        survivors: images that the attack had left.
        images: all images.
    """
    return float(losses.double().sum()) * survivors / (len(losses) * images)


def judge_gain(gain: float | None) -> list[Finding]:
    """Return a finding if twice the effort costs a point or more, or was not tried."""
    if gain is None:
        return [
            Finding("no_convergence_gate", "no attack with twice the effort was given: convergence unknown")
        ]
    if gain < LARGEST_GAIN - _ROUNDING:
        return []
    return [
        Finding(
            "not_converged",
            f"twice the steps, restarts and draws cost another {gain:.1%} of accuracy; allowed: below "
            f"{LARGEST_GAIN:.0%}",
            {"gain": gain},
        )
    ]


def judge_control(noisy: float, bare: float, eps: float, clean: float = 1.0) -> list[Finding]:
    """Return a finding if noise that defends nothing keeps accuracy, or the bare network keeps it too.

    Args:
        noisy: accuracy of the undefended network behind 8-bit noise, under the attack.
        bare: that without noise.
        eps: radius of both.
        clean: accuracy of the undefended network without attack.
    """
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
        if clean >= CONTROL_CLEAN:
            return []
        # Of a network that errs anyhow noise keeps nothing.
        return [
            Finding(
                "control_uninformative",
                f"the undefended network is right on {clean:.1%} of the clean images; needed for the noise "
                f"control: {CONTROL_CLEAN:.0%}",
                {"clean": clean},
            )
        ]
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
