"""MORA, the model-reweighing attack on ensembles of Yu, Gao and Xu 2022, adapted to draws, L∞."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from squint import _random
from squint._checks import HasMemberLogits, check_choice, check_number, need_members
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import Units, usable
from squint.attacks.incumbent import best_of
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import Objective, log_mean_probability
from squint.attacks.targets import likely_targets

MOMENTUM = 0.75
SOFTENING = 0.2


def mora(
    model: HasMemberLogits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 100,
    eot: int = 1,
    betas: Sequence[float] = (0.5, 0.0, 0.25, 0.75, 1.0),
    num_targets: int | None = None,
    ensemble_term: str = "log",
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    stratified: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Return the points with the highest pooled margin over runs that weigh units by what they can change.

    Each run ascends the cross-entropy of a mixture: 1 − β of the pooled prediction, scaled to a gap of one,
    and β of the units' logits in a mean weighted by how much each unit moves the pooled prediction, units
    that err already left out. Steps of 2·eps fall with a half cosine.

    Args:
        model: a model with `member_logits`.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: L∞ radius in [0, 1].
        steps: gradient steps per run; there are len(betas) + num_targets runs.
        eot: single draws per gradient.
        betas: share of the units' term in each untargeted run, in [0, 1].
        num_targets: targeted runs at β = ½, the likeliest wrong classes first; None takes all wrong classes.
        ensemble_term: "log" for ℓ = log p̄, "probability" for p̄ itself.
        generator: source of all randomness; None takes squint's own stream.
        start: warm start (batch, ...) of every run; None begins at random points.
        stratified: spread the draws over strata where the noise is squint's.
        chunk: draws whose graph is held in memory at once.

    Raises:
        InputTypeError: for a model without members.
        InputError: for a value out of range, or a model that returns NaN for all images at the start.
    """
    ball = Ball(x, eps, "linf")
    units = Units(need_members(model, "attacks.mora"), y, eot, stratified=stratified, chunk=chunk)
    check_number("steps", steps, 1, whole=True)
    check_choice("ensemble_term", ensemble_term, ("log", "probability"))
    for beta in betas:
        check_number("betas", beta, 0.0, 1.0)
    if num_targets is not None:
        check_number("num_targets", num_targets, 0 if betas else 1, whole=True)
    generator = generator or _random.default_generator()
    with evaluation_mode(model):
        goals = [mora_objective(y, beta=beta, ensemble_term=ensemble_term) for beta in betas]
        if num_targets != 0:
            count = num_targets or 2**31
            goals += [
                mora_objective(y, beta=0.5, targets=target, ensemble_term=ensemble_term)
                for target in likely_targets(units, ball.x, count, generator)
            ]
        points = [
            _run(units, ball, goal, ball.first_point(0, start, True, generator), steps, generator)
            for goal in goals
        ]
        return best_of(units, points, generator)


def mora_objective(
    y: Tensor, *, beta: float, targets: Tensor | None = None, ensemble_term: str = "log"
) -> Objective:
    """Return MORA's loss of all units' logits: CE of (1 − β)·pooled/gap + β·Σ r w z/s / (Σ r w + 1e-8).

    s = max(1, the largest gap between a unit's first two logits / 10), r = 1 where a unit is right, w from
    `unit_weights`; r, w, s and the gap carry no gradient. With targets it is −CE towards the target.
    """

    def goal(logits: Tensor) -> Tensor:
        z = logits.flatten(0, -3)
        fixed = z.detach()
        first_two = fixed.topk(2, dim=-1).values
        s = ((first_two[..., 0] - first_two[..., 1]).amax(0) / 10).clamp_min(1.0)
        pooled = log_mean_probability(z.unsqueeze(1))
        if ensemble_term == "probability":
            pooled = pooled.exp()
        c = targets if targets is not None else _likeliest_wrong(pooled.detach(), y)
        top = pooled.detach().topk(2, dim=-1).values
        gap = (top[:, :1] - top[:, 1:]).clamp_min(1e-12)
        weight = unit_weights(fixed / s[:, None], y, c) * (fixed.argmax(-1) == y)
        term = (weight.unsqueeze(-1) * z / s[:, None]).sum(0) / (weight.sum(0) + 1e-8).unsqueeze(-1)
        mixture = ((1 - beta) * pooled / gap + beta * term).log_softmax(-1)
        aim, sign = (y, -1.0) if targets is None else (targets, 1.0)
        return sign * mixture.gather(-1, aim.long().unsqueeze(-1)).squeeze(-1)

    return goal


def unit_weights(z: Tensor, y: Tensor, c: Tensor, *, softening: float = SOFTENING) -> Tensor:
    """Return (units, batch): the derivative of log q̄_c − log q̄_y by unit a's z_ac, times units / softening.

    q_a = softmax(softening·z_a), q̄ the mean over units: w_a = q_ac(1 − q_ac)/q̄_c + q_ac·q_ay/q̄_y.

    Args:
        z: logits (units, batch, classes).
        y: labels (batch,).
        c: the class that should win (batch,).
        softening: multiplies the logits, so that a saturated unit keeps a weight.
    """
    q = (softening * z).softmax(-1)
    q_c, q_y = (q.gather(-1, k.long().expand(len(q), -1).unsqueeze(-1)).squeeze(-1) for k in (c, y))
    return q_c * (1 - q_c) / q_c.mean(0) + q_c * q_y / q_y.mean(0)


def _likeliest_wrong(scores: Tensor, y: Tensor) -> Tensor:
    return scores.scatter(-1, y.long().unsqueeze(-1), -math.inf).argmax(-1)


def _run(
    units: Units, ball: Ball, goal: Objective, point: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Return the last iterate of one run."""
    previous, sound = point, point
    found = torch.zeros(len(point), dtype=torch.bool, device=point.device)
    for step in range(steps):
        loss, slope = units.gradient(point, goal, _random.next_seed(generator))
        found |= loss.isposinf()
        finite, slope = usable(loss, slope)
        sound = torch.where(finite, point, sound)
        size = ball.eps * (1 + math.cos(math.pi * step / steps))
        target = ball.project(sound + size * ball.normalise(slope))
        share = MOMENTUM if step else 1.0
        moved = ball.project(sound + share * (target - sound) + (1 - share) * (sound - previous))
        previous, point = sound, torch.where(per_example(found, point), point, moved)
    return point
