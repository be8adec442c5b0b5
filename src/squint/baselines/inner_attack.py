"""Adversarial examples inside a training step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from squint._checks import InputError, parse_fraction
from squint._random import default_generator
from squint.attacks.pgd import pgd


def radius(eps: str | None, of_study: float, rival: str) -> float:
    """Return the radius of a rival's inner attack: its own, or the study's.

    Raises:
        squint.InputError: it is 0: the rival then has no adversarial examples to train on.
    """
    value = of_study if eps is None else parse_fraction("eps", eps)
    if value == 0:
        raise InputError(
            f"eps is 0; rival {rival} allowed: above 0, because it trains on adversarial examples"
        )
    return value


def adversarial_examples(
    ens: Any, x: Tensor, y: Tensor, *, eps: float, steps: int, step_size: float | None
) -> Tensor:
    """Return the last iterate of PGD from a random start, on the loss of the deployed rule.

    The ensemble is attacked in evaluation mode: it normalizes by its running statistics and no statistics
    move. Each gradient sees one fresh draw of the noise. Parameter gradients are not touched.

    Args:
        ens: a model with `member_logits`.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: L-infinity radius.
        steps: gradient steps.
        step_size: of each; None takes eps/4.
    """
    points = pgd(ens, x, y, eps=eps, steps=steps, step_size=step_size, generator=default_generator())
    return points.to(x.dtype)
