"""Auto-PGD, Croce and Hein 2020, for models with a random output."""

from __future__ import annotations

import torch
from torch import Tensor

from squint import _random
from squint._checks import check_number
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import AnyModel, Units, nan_found, usable
from squint.attacks.incumbent import Bank, Incumbent, best_of
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import Objective, objective
from squint.attacks.targets import likely_targets

MOMENTUM = 0.75
RHO = 0.75


def apgd(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    eot: int = 1,
    loss: str = "ce",
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    start: Tensor | None = None,
    targets: Tensor | None = None,
    stratified: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Return the points with the highest pooled margin that step-size-adapting ascent has met.

    The step begins at 2·eps and is halved, example by example, at checkpoints where the loss rose too rarely
    or the best point has not changed. Unlike the original on random models, the loss is taken once over all
    `eot` draws, gradients use fresh noise, progress is judged on one bank of `eot` draws that is renewed at
    each checkpoint with the incumbents scored again, and no single draw's success is believed. A step costs a
    gradient and one more forward pass.

    Args:
        model: a callable returning logits (batch, classes), or a model with `member_logits`.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: radius, in [0, 1] for "linf" and at least 0 for "l2".
        norm: "linf" or "l2".
        steps: gradient steps per restart.
        restarts: independent runs; the first begins at `start`, at x without `random_start`, else at random.
        eot: single draws per gradient and in the bank.
        loss: "ce", "mean_ce", "margin", "dlr" or "mean_logits_margin".
        temperature: divides the logits of every unit inside the mean.
        generator: source of all randomness; None takes squint's own stream.
        random_start: begin at a uniform point of the ball.
        start: warm start (batch, ...), projected into the ball.
        targets: wrong classes (batch,) to reach; the loss takes its targeted form.
        stratified: spread the draws over strata where the noise is squint's.
        chunk: draws whose graph is held in memory at once.

    Raises:
        InputError: for a value out of range, or a model that returns NaN for all images at the start.
    """
    ball = Ball(x, eps, norm)
    units = Units(model, y, eot, stratified=stratified, chunk=chunk, targets=targets)
    goal = objective(loss, y, targets=targets, temperature=temperature)
    check_number("steps", steps, 1, whole=True)
    check_number("restarts", restarts, 1, whole=True)
    generator = generator or _random.default_generator()
    with evaluation_mode(model):
        points = [
            _run(units, ball, goal, ball.first_point(r, start, random_start, generator), steps, generator)
            for r in range(restarts)
        ]
        return best_of(units, points, generator)


def apgd_targeted(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    screened: int = 9,
    refined: int = 3,
    eot: int = 1,
    loss: str = "dlr",
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    stratified: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Return the points with the highest pooled margin over targeted runs of `apgd`.

    The `screened` likeliest wrong classes each get a fifth of the steps; each example's `refined` best of
    them then get all the steps, from where the screening ended.

    `screened` and `refined` are at least 1, and no more targets are used than there are wrong classes;
    `start` warms up the screening; the other arguments are those of `apgd`.

    Raises:
        InputError: as `apgd`.
    """
    ball = Ball(x, eps, norm)
    units = Units(model, y, eot, stratified=stratified, chunk=chunk)
    check_number("steps", steps, 1, whole=True)
    check_number("screened", screened, 1, whole=True)
    check_number("refined", refined, 1, screened, whole=True)
    generator = generator or _random.default_generator()
    with evaluation_mode(model):
        classes = likely_targets(units, ball.x, screened, generator)
        found = []
        for target in classes:
            goal = objective(loss, y, targets=target)
            begin = ball.first_point(0, start, True, generator)
            found.append(_run(units, ball, goal, begin, max(steps // 5, 1), generator))
        bank, pooled = Bank(units, generator), nan_found(objective("margin", y))
        scores = torch.stack([pooled(bank.logits(point)) for point in found])
        order, rows = scores.argsort(0, descending=True), torch.arange(len(y), device=y.device)
        points = [torch.stack(found)[order[0], rows]]
        for chosen in order[:refined]:
            goal = objective(loss, y, targets=classes[chosen, rows])
            points.append(_run(units, ball, goal, torch.stack(found)[chosen, rows], steps, generator))
        return best_of(units, points, generator)


def checkpoints(steps: int) -> list[int]:
    """Return after how many steps the step size is judged: 0.22, then gaps 0.03 shorter down to 0.06."""
    at, gap, found = 0.22, 0.22, []
    while at <= 1.0:
        found.append(max(round(at * steps), 1))
        gap = max(gap - 0.03, 0.06)
        at += gap
    return sorted(set(found))


def _run(
    units: Units, ball: Ball, goal: Objective, point: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Return the point of the highest pooled margin that one run has met."""
    pooled, goal = nan_found(objective("margin", units.y)), nan_found(goal)
    bank = Bank(units, generator)
    best, found = Incumbent(bank, goal, point), Incumbent(bank, pooled, point)
    score, previous, sound = best.score, point, point
    size = torch.full_like(score, 2 * ball.eps)
    rises, improved = torch.zeros_like(score), torch.zeros_like(score, dtype=torch.bool)
    halved = torch.zeros_like(improved)
    judged, last = checkpoints(steps), 0
    for step in range(1, steps + 1):
        loss, slope = units.gradient(point, goal, _random.next_seed(generator))
        finite, slope = usable(loss, slope)
        sound = torch.where(finite, point, sound)
        direction = ball.normalise(slope)
        target = ball.project(sound + per_example(size, point).to(point) * direction)
        share = MOMENTUM if step > 1 else 1.0
        moved = ball.project(sound + share * (target - sound) + (1 - share) * (sound - previous))
        previous, point = sound, moved
        logits = bank.logits(point)
        value = goal(logits)
        rises += value > score
        improved |= best.keep(point, value)
        found.keep(point, pooled(logits))
        score = value
        if step in judged and step < steps:
            stuck = (rises < RHO * (step - last)) | (~halved & ~improved)
            size = torch.where(stuck, size / 2, size)
            point = torch.where(per_example(stuck, point), best.point, point)
            previous = torch.where(per_example(stuck, point), point, previous)
            halved, last = stuck, step
            rises, improved = torch.zeros_like(rises), torch.zeros_like(improved)
            bank.renew()
            best.rescore()
            found.rescore()
            score = goal(bank.logits(point))
    return found.point
