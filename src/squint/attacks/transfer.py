"""Transfer from source models: momentum (Dong et al. 2018) and diverse inputs (Xie et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn import functional as F

from squint import _random
from squint._checks import InputError, check_number
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import AnyModel, Units, View, usable
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective
from squint.attacks.pgd import ascend


def transfer(
    sources: Sequence[AnyModel],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 50,
    step_size: float | None = None,
    eot: int = 1,
    loss: str = "ce",
    momentum: float = 1.0,
    diversity: float = 0.5,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the last iterates of ascent along the sum of the sources' L1-normalised gradients.

    The attacked model is not asked. With probability `diversity` a step shows the sources the images shrunk
    by up to 15 % and padded with zeros back to their size at a random place.

    `sources` are models as `pgd` takes them, `diversity` in [0, 1] is the share of the steps that see
    transformed images, which must then be (batch, channels, height, width); the other arguments are those of
    `pgd`.

    Raises:
        InputError: without sources, for a value out of range, or a source that returns NaN for all images at
            the start.
    """
    ball = Ball(x, eps, norm)
    if not sources:
        raise InputError("sources is empty; allowed: one model or more to transfer from")
    check_number("steps", steps, 1, whole=True)
    check_number("momentum", momentum, 0.0)
    check_number("diversity", diversity, 0.0, 1.0)
    if diversity and x.ndim != 4:
        raise InputError(
            f"images have shape {tuple(x.shape)}; diverse inputs need (batch, channels, height, width)"
        )
    size = eps / 4 if step_size is None else check_number("step_size", step_size, 0.0)
    goal = objective(loss, y)
    each = [Units(source, y, eot, chunk=chunk) for source in sources]
    generator = generator or _random.default_generator()

    def gradient(point: Tensor) -> tuple[Tensor, Tensor]:
        view = diverse_view(point, generator) if _coin(diversity, generator) else None
        total = torch.zeros(len(point), dtype=torch.float64, device=point.device)
        votes = torch.zeros_like(point, dtype=torch.float64)
        heard = torch.zeros(len(point), dtype=torch.bool, device=point.device)
        for units in each:
            value, slope = units.gradient(point, goal, _random.next_seed(generator), view=view)
            # A source that fails on an image has no vote there; that it does is no success against the model.
            sound, slope = usable(value, slope)
            total += value.where(sound.flatten(), 0.0)
            heard |= sound.flatten()
            votes += slope / per_example(slope.flatten(1).abs().sum(1), slope).clamp_min(1e-300)
        # Where all of them fail the step is taken back.
        return total.where(heard, math.nan), votes

    with ExitStack() as modes:
        for source in sources:
            modes.enter_context(evaluation_mode(source))
        begin = ball.first_point(0, start, random_start, generator)
        return ascend(gradient, ball, begin, [size] * steps, momentum=momentum)


def diverse_view(x: Tensor, generator: torch.Generator) -> View:
    """Return one fixed random shrinking and padding for images shaped like x (batch, channels, H, W)."""
    height, width = x.shape[-2:]
    shrink = 1 - 0.15 * float(torch.rand((), generator=generator, device=generator.device))
    small = (max(round(height * shrink), 1), max(round(width * shrink), 1))
    top, left = (
        int(torch.randint(free + 1, (), generator=generator, device=generator.device))
        for free in (height - small[0], width - small[1])
    )
    padding = (left, width - small[1] - left, top, height - small[0] - top)

    def view(images: Tensor) -> Tensor:
        return F.pad(F.interpolate(images, size=small, mode="bilinear", align_corners=False), padding)

    return view


def _coin(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator, device=generator.device)) < probability
