"""Simultaneous perturbation stochastic approximation, Spall 1992, Uesato et al. 2018: no gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from squint import _random
from squint._checks import check_number
from squint.attacks.geometry import Ball, per_example, step_sizes
from squint.attacks.gradients import AnyModel, Units, nan_found
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective
from squint.attacks.pgd import ascend

_LARGEST = 1e6
"""What the loss of a NaN output counts in a difference."""


def spsa(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 50,
    step_size: float | None = None,
    final_step_size: float | None = None,
    directions: int = 64,
    radius: float = 0.01,
    eot: int = 1,
    loss: str = "margin",
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the last iterates of ascent along gradients estimated from differences of the pooled loss.

    Each estimate is the mean over random signs v of v·(L(x + radius·v) − L(x − radius·v)) / (2·radius). Both
    ends of a pair are clipped to [0, 1] and meet the same noise. A step costs 2 · directions · eot forward
    passes and no backward pass.

    `directions` counts the pairs of an estimate and `radius`, above 0, is half the distance between the ends
    of a pair; the other arguments are those of `pgd`.

    Raises:
        InputError: for a value out of range, or a model that returns NaN for all images at the
            start.
    """
    ball = Ball(x, eps, norm)
    units = Units(model, y, eot, chunk=chunk)
    goal = nan_found(objective(loss, y))
    check_number("steps", steps, 1, whole=True)
    check_number("directions", directions, 1, whole=True)
    check_number("radius", radius, 0.0, open_low=True)
    check_number("momentum", momentum, 0.0)
    first = eps / 4 if step_size is None else check_number("step_size", step_size, 0.0)
    if final_step_size is not None:
        check_number("final_step_size", final_step_size, 0.0, open_low=True)
    sizes = step_sizes(first, final_step_size, steps)
    generator = generator or _random.default_generator()

    def estimate(point: Tensor) -> tuple[Tensor, Tensor]:
        slope = torch.zeros_like(point, dtype=torch.float64)
        total = torch.zeros(len(point), dtype=torch.float64, device=point.device)
        for _ in range(directions):
            coins = torch.rand(point.shape, generator=generator, device=generator.device).to(point.device)
            v = (coins < 0.5).to(point) * 2 - 1
            seed = _random.next_seed(generator)
            ahead, behind = (
                # A NaN output outweighs all others, but is not yet at the point itself.
                goal(units.logits((point + sign * radius * v).clamp(0.0, 1.0), seed).double()).clamp_max(
                    _LARGEST
                )
                for sign in (1.0, -1.0)
            )
            slope += per_example((ahead - behind) / (2 * radius * directions), v) * v
            total += (ahead + behind) / (2 * directions)
        return total, slope

    with evaluation_mode(model):
        begin = ball.first_point(0, start, random_start, generator)
        return ascend(estimate, ball, begin, sizes, momentum=momentum)
