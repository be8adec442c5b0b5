"""PGD on the sum of the members' own normalised gradients: no member drowns the others out."""

from __future__ import annotations

import torch
from torch import Tensor

from squint import _random
from squint._checks import HasMemberLogits, check_number, need_members
from squint.attacks.geometry import Ball, step_sizes
from squint.attacks.gradients import Units, made_finite
from squint.attacks.incumbent import best_of
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective
from squint.attacks.pgd import ascend


def member_pgd(
    model: HasMemberLogits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 50,
    step_size: float | None = None,
    final_step_size: float | None = None,
    restarts: int = 1,
    eot: int = 1,
    loss: str = "margin",
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    stratified: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Return the last iterates of ascent along Σ_m ∇L_m / ‖∇L_m‖₂, L_m pooled over the draws of member m.

    Confidence, and with it the size of a gradient, differs between members; here each has one vote. Several
    restarts keep the point with the highest pooled margin.

    `loss` is each member's; the other arguments are those of `pgd`, with a model that has `member_logits`.

    Raises:
        InputTypeError: for a model without members.
        InputError: for a value out of range, or a model that returns NaN for all images at the
            start.
    """
    ball = Ball(x, eps, norm)
    units = Units(need_members(model, "attacks.member_pgd"), y, eot, stratified=stratified, chunk=chunk)
    goal = objective(loss, y)
    check_number("steps", steps, 1, whole=True)
    check_number("restarts", restarts, 1, whole=True)
    first = eps / 4 if step_size is None else check_number("step_size", step_size, 0.0)
    if final_step_size is not None:
        check_number("final_step_size", final_step_size, 0.0, open_low=True)
    sizes = step_sizes(first, final_step_size, steps)
    generator = generator or _random.default_generator()

    def each(logits: Tensor) -> Tensor:
        return torch.stack([goal(member) for member in logits.tensor_split(logits.shape[1], dim=1)])

    def gradient(point: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = units.gradients(point, each, _random.next_seed(generator))
        flat = made_finite(slopes.flatten(0, 1)).view_as(slopes).flatten(2)
        votes = flat / flat.norm(dim=2, keepdim=True).clamp_min(1e-300)
        return losses.sum(0), votes.sum(0).view_as(point)

    with evaluation_mode(model):
        points = [
            ascend(gradient, ball, ball.first_point(r, start, random_start, generator), sizes)
            for r in range(restarts)
        ]
        return best_of(units, points, generator)
