"""What the active tests' measurements must be, as findings where they are not."""

from __future__ import annotations

from squint.evaluation.records import Finding

PLANTED_SHARE = 0.95
FEWEST_PLANTED = 10
"""Planted points without which the share found says nothing."""
LARGEST_GAIN = 0.01
CONTROL_LEFT = 0.05
"""Accuracy that the control may keep: an undefended network behind 8-bit noise goes to about nothing."""


def judge_planted(found: int, total: int) -> list[Finding]:
    """Return a finding if too few points could be planted, or less than 95 % of them were found."""
    if total < FEWEST_PLANTED:
        return [
            Finding(
                "planted_unavailable",
                f"{total} adversarial points could be planted; needed: {FEWEST_PLANTED}. There are too "
                "few images, no linear layer to refit, or noise that hides one corner of the ball",
                {"total": total, "needed": FEWEST_PLANTED},
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


def judge_control(noisy: float, bare: float) -> list[Finding]:
    """Return a finding if noise that defends nothing keeps accuracy that the bare network loses."""
    # At a radius that leaves the bare network much, the noise may leave as much, but not more.
    if noisy <= max(bare + LARGEST_GAIN, CONTROL_LEFT):
        return []
    return [
        Finding(
            "noise_control",
            f"an undefended network behind 8-bit input noise keeps {noisy:.1%}, without noise {bare:.1%}: "
            "the attack is held up by noise that defends nothing",
            {"noisy": noisy, "bare": bare},
        )
    ]
