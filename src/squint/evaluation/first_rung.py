"""The first rung beside plain PGD: what falls much further to the one hid from the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from squint import attacks as A
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel, nan_reported
from squint.evaluation.budgets import Budget
from squint.evaluation.flags import LATE_FALL
from squint.evaluation.machine import in_memory
from squint.evaluation.records import Finding
from squint.evaluation.scoring import RESUBMISSIONS, Scores, is_random, score

STEPS, EOT = 20, 10
"""Of the plain PGD: cross-entropy of the pooled prediction, steps of eps/4, one random start."""


@dataclass(frozen=True, eq=False)
class FirstRung:
    """The same images after the ladder's first rung and after plain PGD, scored on the same draws.

    Attributes:
        targeted: scores after the first rung.
        plain: scores after PGD-20 with ten draws.
    """

    targeted: Scores
    plain: Scores

    def summary(self) -> dict[str, float]:
        """Return both accuracies as plain data."""
        return {
            "first_rung_accuracy": self.targeted.accuracy,
            "plain_pgd_accuracy": self.plain.accuracy,
        }

    @property
    def fall(self) -> float:
        """Accuracy that the first rung takes beyond plain PGD."""
        return self.plain.accuracy - self.targeted.accuracy

    @property
    def standard_error(self) -> float:
        """Standard error of the fall over images, which are paired; infinite for one image."""
        falls = self.plain.correct - self.targeted.correct
        return float(falls.std()) / math.sqrt(len(falls)) if len(falls) > 1 else math.inf


def is_compared(budget: Budget) -> bool:
    """Return whether the budget's first rung is targeted pooled-margin PGD, which the comparison is about."""
    return {move.attack for move in budget.rungs[0].moves} == {"targeted"}


def first_rung(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    eps: float,
    targeted: Tensor,
    *,
    seed: int,
    keys: tuple[object, ...],
    draws: int,
    chunk: int | None = None,
) -> FirstRung:
    """Return how the images stand after the first rung and after PGD-20 with ten draws per gradient.

    Args:
        model: in evaluation mode.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: L∞ radius.
        targeted: what the first rung has found (batch, ...).
        seed: base of the streams.
        keys: of the batch, for its streams.
        draws: draws S per deployment.
        chunk: draws whose graph is held in memory at once, halved where memory runs out; None: all.
    """
    eot = EOT if is_random(model) else 1

    def attacked(held: int | None) -> Tensor:
        generator = derive_generator(seed, "attack", *keys, "plain PGD")
        return A.pgd(model, x, y, eps=eps, steps=STEPS, eot=eot, chunk=held, generator=generator)

    with nan_reported():
        plain, _ = in_memory(attacked, chunk, eot)

    def scored(points: Tensor) -> Scores:
        # One stream for both: their difference is paired over draws too.
        return score(
            model,
            points,
            y,
            draws=draws,
            resubmissions=RESUBMISSIONS,
            seed=seed,
            keys=(*keys, "first rung"),
        )

    return FirstRung(scored(targeted), scored(plain))


def early_fall(found: FirstRung | None) -> list[Finding]:
    """Return a finding if the first rung leaves over eight points less than plain PGD, and two errors.

    Honest networks lose to it what targets, momentum and the margin are worth: up to 7 points without noise,
    and 10.7 (standard error 1.9) behind two bits of it, as measured. Of one that loses more, plain PGD's
    gradients did not see the way.
    """
    if found is None or not found.fall > LATE_FALL + 2 * (error := found.standard_error):
        return []
    return [
        Finding(
            "masking_suspected",
            f"the first rung leaves {found.targeted.accuracy:.1%} where PGD-{STEPS} with {EOT} draws leaves "
            f"{found.plain.accuracy:.1%}; allowed: {LATE_FALL:.0%} less, and two standard errors",
            {
                "targeted": found.targeted.accuracy,
                "plain": found.plain.accuracy,
                "fall": found.fall,
                "standard_error": error,
                "allowed": LATE_FALL,
                "n": len(found.plain.errors),
            },
        )
    ]
