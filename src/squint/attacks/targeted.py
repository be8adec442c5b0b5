"""Targeted PGD on the pooled margin: the first rung of the ladder."""

from __future__ import annotations

import torch
from torch import Tensor

from squint import _random
from squint._checks import check_number
from squint.attacks.geometry import Ball, step_sizes
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.incumbent import Bank, best_of
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import Objective, margin, mean_logits_margin, objective
from squint.attacks.pgd import ascend
from squint.attacks.targets import likely_targets

FEW_UNITS = 4.0
"""Effective units below which a target's mean probability is one lucky unit's."""


def targeted(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 20,
    refine_steps: int = 100,
    num_targets: int = 3,
    eot: int = 8,
    momentum: float = 0.75,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    stratified: bool = True,
    chunk: int | None = None,
) -> Tensor:
    """Return the points with the highest pooled margin over targeted ascents of ℓ_t − ℓ_y, ℓ = log p̄.

    The likeliest wrong classes each get `steps` steps that decay from eps to eps / 100; the best of them then
    gets `refine_steps` more from where it ended. Where the target's mean probability rests on fewer effective
    units than four and than half of the draws, the margin of mean logits, which every unit moves, takes its
    place.
    (num_targets · steps + refine_steps) · eot gradients an image.

    Args:
        model: a callable returning logits (batch, classes), or a model with `member_logits`.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: radius, in [0, 1] for "linf" and at least 0 for "l2".
        norm: "linf" or "l2".
        steps: gradient steps towards each target.
        refine_steps: gradient steps towards the best target; 0 leaves the refinement out.
        num_targets: targets for each example; never more than there are wrong classes.
        eot: single draws per gradient.
        momentum: weight of the accumulated L1-normalised gradients.
        generator: source of all randomness; None takes squint's own stream.
        random_start: begin at a uniform point of the ball, else at x.
        start: warm start (batch, ...), projected into the ball.
        stratified: spread the draws over strata where the noise is squint's.
        chunk: draws whose graph is held in memory at once.

    Raises:
        InputError: for a value out of range, or a model that returns NaN for all images at the
            start.
    """
    ball = Ball(x, eps, norm)
    units = Units(model, y, eot, stratified=stratified, chunk=chunk)
    check_number("steps", steps, 1, whole=True)
    check_number("refine_steps", refine_steps, 0, whole=True)
    check_number("num_targets", num_targets, 1, whole=True)
    check_number("momentum", momentum, 0.0)
    generator = generator or _random.default_generator()

    def run(begin: Tensor, target: Tensor, count: int) -> Tensor:
        goal = pooled_target_margin(y, target)
        sizes = step_sizes(eps, eps / 100, count)
        return ascend(
            lambda point: units.gradient(point, goal, _random.next_seed(generator)),
            ball,
            begin,
            sizes,
            momentum=momentum,
        )

    with evaluation_mode(model):
        classes = likely_targets(units, ball.x, num_targets, generator)
        first = ball.first_point(0, start, random_start, generator)
        found = torch.stack([run(first, target, steps) for target in classes])
        bank, pooled = Bank(units, generator), objective("margin", y)
        chosen = torch.stack([pooled(bank.logits(point)) for point in found]).argmax(0)
        rows = torch.arange(len(y), device=y.device)
        points = [found[chosen, rows]]
        if refine_steps:
            points.append(run(points[0], classes[chosen, rows], refine_steps))
        return best_of(units, points, generator)


def pooled_target_margin(y: Tensor, target: Tensor) -> Objective:
    """Return ℓ_t − ℓ_y of all units as an objective, or z̄_t − z̄_y where few units carry p̄_t."""

    def goal(logits: Tensor) -> Tensor:
        # Members may well disagree about a target: only fewer units than half of the draws are a lucky few.
        few = effective_units(logits.detach(), target) < min(FEW_UNITS, logits.shape[0] / 2)
        return torch.where(
            few, mean_logits_margin(logits, y, targets=target), margin(logits, y, targets=target)
        )

    return goal


def effective_units(logits: Tensor, target: Tensor) -> Tensor:
    """Return (Σ_a p_at)² / Σ_a p_at² (batch,): how many units carry the target's mean probability."""
    log_p = logits.flatten(0, -3).log_softmax(-1)
    carried = log_p.gather(-1, target.long().expand(len(log_p), -1).unsqueeze(-1)).squeeze(-1)
    return (2 * carried.logsumexp(0) - (2 * carried).logsumexp(0)).exp()
