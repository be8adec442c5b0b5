"""Projected gradient ascent, Madry et al. 2018, with gradients pooled over draws and members."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from squint import _random
from squint._checks import check_number
from squint.attacks.adaptive import AdaptiveGradient
from squint.attacks.geometry import Ball, per_example, step_sizes
from squint.attacks.gradients import AnyModel, Units, usable
from squint.attacks.incumbent import best_of
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import Objective, objective


def pgd(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    eot: int = 1,
    loss: str = "ce",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    momentum: float = 0.0,
    final_step_size: float | None = None,
    targets: Tensor | None = None,
    stratified: bool = False,
    chunk: int | None = None,
    adaptive_eot: bool = False,
) -> Tensor:
    """Return adversarial images, shaped like x, in [0, 1] and within eps.

    One restart returns its last iterate, as the field's PGD does. Several restarts return, for each example,
    the last iterate with the highest pooled margin, all of them scored on one bank of `eot` draws.

    Args:
        model: a callable returning logits (batch, classes), or a model with `member_logits`. It is attacked
            in evaluation mode and left in the mode it was found in; parameter gradients are not touched.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: radius, in [0, 1] for "linf" and at least 0 for "l2".
        norm: "linf" or "l2", over all of an image's elements.
        steps: gradient steps per restart.
        step_size: length of a step in `norm`; None takes eps / 4.
        restarts: independent runs; the first begins at `start`, at x without `random_start`, else at random.
        eot: single draws per gradient. A model with `member_logits` gives all its members at each draw and
            its own `draws` is ignored; any other callable is called `eot` times. The loss is pooled once.
        loss: "ce", "mean_ce", "margin", "dlr" or "mean_logits_margin", as in `attacks.objectives`.
        temperature: divides the logits of every unit inside the mean.
        generator: source of all randomness, the model's noise included; None takes squint's own stream.
        random_start: begin at a uniform point of the ball.
        start: warm start (batch, ...), projected into the ball.
        momentum: weight of the accumulated L1-normalised gradients (Dong et al. 2018).
        final_step_size: last step of a geometric decay from `step_size`; None keeps the step constant.
        targets: wrong classes (batch,) to reach; the loss takes its targeted form.
        stratified: spread the draws over strata (Latin hypercube) where the noise is squint's.
        chunk: draws whose graph is held in memory at once; None holds all `eot`. More draws than that cost
            one more forward pass; the gradient stays exact.
        adaptive_eot: let `eot`, 2 or more, be where each example begins: its draws are doubled, up to 64,
            where the two halves of them disagree on the gradient, and in the last tenth of the steps.

    Raises:
        InputError: for a value out of range, or a model that returns NaN for all images at the start.
    """
    ball = Ball(x, eps, norm)
    units = Units(model, y, eot, stratified=stratified, chunk=chunk, targets=targets)
    goal = objective(loss, y, targets=targets, temperature=temperature)
    check_number("steps", steps, 1, whole=True)
    check_number("restarts", restarts, 1, whole=True)
    check_number("momentum", momentum, 0.0)
    first = eps / 4 if step_size is None else check_number("step_size", step_size, 0.0)
    if final_step_size is not None:
        check_number("final_step_size", final_step_size, 0.0, open_low=True)
    sizes = step_sizes(first, final_step_size, steps)
    generator = generator or _random.default_generator()

    def part(rows: Tensor) -> Objective:
        chosen = None if targets is None else targets[rows]
        return objective(loss, y[rows], targets=chosen, temperature=temperature)

    def gradient() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        if adaptive_eot:
            adaptive = AdaptiveGradient(units, part, steps)
            return lambda point: adaptive(point, _random.next_seed(generator))
        return lambda point: units.gradient(point, goal, _random.next_seed(generator))

    with evaluation_mode(model):
        points = [
            ascend(
                gradient(),
                ball,
                ball.first_point(restart, start, random_start, generator),
                sizes,
                momentum=momentum,
            )
            for restart in range(restarts)
        ]
        return best_of(units, points, generator)


def ascend(
    gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    ball: Ball,
    point: Tensor,
    sizes: Sequence[float],
    *,
    momentum: float = 0.0,
) -> Tensor:
    """Return the last iterate of projected ascent: gradient, normalise, project.

    An example stops where its loss is +inf: its logits are NaN, which is an error (`nan_found`). Any other
    step after which its loss is not finite, or its gradient NaN throughout, is taken back (`usable`).

    Args:
        gradient: a point (batch, ...) -> its losses (batch,) and gradient.
        ball: where the point may move.
        point: the first iterate (batch, ...).
        sizes: the length of each step.
        momentum: weight of the accumulated L1-normalised gradients.
    """
    sound = point
    velocity = torch.zeros((), dtype=torch.float64, device=point.device)
    found = torch.zeros(len(point), dtype=torch.bool, device=point.device)
    for size in sizes:
        loss, slope = gradient(point)
        found |= loss.isposinf()
        finite, slope = usable(loss, slope)
        sound = torch.where(finite, point, sound)
        if momentum:
            length = per_example(slope.flatten(1).abs().sum(1), slope).clamp_min(1e-300)
            # Where a step is taken back, what led to it is forgotten: it would lead there again.
            velocity = (momentum * velocity + slope / length).where(finite, 0.0)
        else:
            velocity = slope
        moved = ball.project(sound + size * ball.normalise(velocity))
        point = torch.where(per_example(found, point), point, moved)
    return point
