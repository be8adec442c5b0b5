"""Fast gradient (sign) method, Goodfellow, Shlens and Szegedy 2015."""

from __future__ import annotations

import torch
from torch import Tensor

from squint import _random
from squint.attacks.geometry import Ball
from squint.attacks.gradients import AnyModel, Units, usable
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective


def fgsm(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    eot: int = 1,
    loss: str = "ce",
    temperature: float = 1.0,
    targets: Tensor | None = None,
    stratified: bool = False,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return x after one step of length eps along the (sign of the) gradient, clipped to [0, 1].

    Uses the model's own gradient, pooled once over `eot` draws. Arguments and errors are those of `pgd`.
    """
    ball = Ball(x, eps, norm)
    units = Units(model, y, eot, stratified=stratified, chunk=chunk, targets=targets)
    goal = objective(loss, y, targets=targets, temperature=temperature)
    seed = _random.next_seed(generator or _random.default_generator())
    with evaluation_mode(model):
        value, gradient = units.gradient(ball.x, goal, seed)
    _, slope = usable(value, gradient)
    return ball.project(ball.x + eps * ball.normalise(slope))
