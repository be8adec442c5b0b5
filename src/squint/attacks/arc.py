"""ARC, the attack on randomised ensembles of Dbouk and Shanbhag 2022, adapted to pooled probabilities."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from squint import _random
from squint._checks import HasMemberLogits, check_choice, check_number, need_members
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import Units, made_finite, nan_found
from squint.attacks.incumbent import Bank, Incumbent
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import Objective, margin

GROUPS = 4
"""Units into which the draws of a single member are split."""


def arc(
    model: HasMemberLogits,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 20,
    restarts: int = 5,
    eot: int = 8,
    bank_draws: int = 32,
    renew_every: int = 5,
    max_classes: int | None = 4,
    generator: torch.Generator | None = None,
    random_start: bool = False,
    start: Tensor | None = None,
    chunk: int | None = None,
    accept: str = "margin",
) -> Tensor:
    """Return the points to which a greedy walk over the units' nearest decision boundaries leads.

    A unit is a member with its logits averaged over `eot` draws, or, of a single member, one of four groups
    of draws. Unit after unit, the most confident first, the direction d is turned just far enough that the
    unit's linearised boundary is crossed while those before it stay crossed; a turn is kept only if it does
    not help the label, by `accept`, on a common bank of noise. With ζ the distance left at x + δ + d
    and h the unit's direction, the turn follows from requiring ⟨h, η(d + βg)/‖d + βg‖⟩ ≥ ζ + ⟨h, d⟩ with
    η = eps, in either norm: β = η·ζ / (η − ζ − ⟨h, d⟩), plus ρ = 0.05·eps.

    Args:
        model: a model with `member_logits`.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: radius; in [0, 1] for "linf".
        norm: "linf" or "l2".
        steps: walks over all units per restart.
        restarts: the first begins at `start`, at a random point with `random_start`, else at x; the others at
            random points.
        eot: draws over which each unit is averaged.
        bank_draws: draws on which points are compared.
        renew_every: walks between two banks.
        max_classes: wrong classes, the highest first, whose boundaries are looked at; None: all.
        generator: source of all randomness; None takes squint's own stream.
        random_start: begin at a uniform point of the ball.
        start: warm start (batch, ...), projected into the ball.
        chunk: draws whose graph is held in memory at once.
        accept: what a turn must not make worse: "margin", the pooled margin, for the deployed rule; or
            "expected_accuracy", the share of the bank's single draws of all members that are right, for the
            single-draw rule (the paper's own criterion, in which ties are turned too).

    Raises:
        InputTypeError: for a model without members.
        InputError: for a value out of range, or a model that returns NaN for all images at the
            start.
    """
    ball = Ball(x, eps, norm)
    units = Units(need_members(model, "attacks.arc"), y, eot, chunk=chunk)
    for name, value in (
        ("steps", steps),
        ("restarts", restarts),
        ("bank_draws", bank_draws),
        ("renew_every", renew_every),
        ("max_classes", 1 if max_classes is None else max_classes),
    ):
        check_number(name, value, 1, whole=True)
    check_choice("accept", accept, ACCEPT)
    generator = generator or _random.default_generator()
    rule = nan_found(partial(ACCEPT[accept], y=y))
    points = []
    with evaluation_mode(model):
        for restart in range(restarts):
            bank = Bank(units, generator, bank_draws)
            best = Incumbent(bank, rule, ball.first_point(restart, start, random_start, generator))
            for step in range(steps):
                if step and step % renew_every == 0:
                    bank.renew()
                    best.rescore()
                seed = _random.next_seed(generator)
                best.point, best.score = _walk(units, ball, bank, best, rule, max_classes, seed)
            points.append(best.point)
        if restarts == 1:
            return points[0]
        found = Incumbent(Bank(units, generator, bank_draws), rule, points[0])
        for point in points[1:]:
            found.offer(point)
        return found.point


def _walk(
    units: Units, ball: Ball, bank: Bank, best: Incumbent, rule: Objective, most: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Return where a walk over all units leads from the incumbent, and its score; gradients use `seed`."""
    rows = torch.arange(len(ball.x), device=ball.x.device)
    point, score = best.point, best.score
    logits = unit_logits(units.logits(best.point, seed).double())
    right = logits.softmax(-1)[:, rows, units.y.long()]
    turn = torch.zeros_like(ball.x, dtype=torch.float64)
    for unit in right.argsort(0, descending=True):

        def gaps(z: Tensor, unit: Tensor = unit) -> Tensor:
            own = unit_logits(z)[unit, rows]
            correct = own.gather(1, units.y.long().unsqueeze(1))
            others = own.scatter(1, units.y.long().unsqueeze(1), float("-inf"))
            wrong = own.shape[1] - 1
            return (correct - others.topk(wrong if most is None else min(most, wrong)).values).T

        here = ball.project(best.point + turn.to(ball.x))
        gap, slopes = units.gradients(here, gaps, seed)
        flat = made_finite(slopes.flatten(0, 1)).view_as(slopes).flatten(2)
        # A boundary without a gradient is infinitely far, whatever the gap.
        length = _dual(flat, ball.norm)
        zeta, nearest = torch.where(length > 0, gap / length, float("inf")).min(0)
        w = flat[nearest, rows]
        h = -w / _dual(w, ball.norm).unsqueeze(1).clamp_min(1e-300)
        flat_turn = turn.flatten(1)
        reached = zeta + (h * flat_turn).sum(1)
        first = _length(flat_turn, ball.norm) == 0
        far = first | (reached >= ball.eps)
        beta = torch.where(
            far, ball.eps, ball.eps * zeta / (ball.eps - reached).clamp_min(1e-12) + 0.05 * ball.eps
        )
        # The direction of unit length that lowers the gap fastest.
        g = -w.sign() if ball.norm == "linf" else h
        sought = flat_turn + beta.unsqueeze(1) * g
        sought = ball.eps * sought / _length(sought, ball.norm).unsqueeze(1).clamp_min(1e-300)
        candidate = ball.project(best.point + sought.view_as(ball.x).to(ball.x))
        rated = rule(bank.logits(candidate))
        taken = (zeta > 0) & zeta.isfinite() & (rated >= score)
        turn = torch.where(per_example(taken, turn), sought.view_as(turn), turn)
        point = torch.where(per_example(taken, candidate), candidate, point)
        score = torch.where(taken, rated, score)
    return point, score


def _length(flat: Tensor, norm: str) -> Tensor:
    return flat.abs().amax(-1) if norm == "linf" else flat.norm(dim=-1)


def _dual(flat: Tensor, norm: str) -> Tensor:
    """Return the norm by which a slope is measured: how fast a step of length 1 can move the gap."""
    return flat.abs().sum(-1) if norm == "linf" else flat.norm(dim=-1)


def single_draw_error(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share (batch,) of single draws whose mean probability over members misses the label."""
    each = logits.softmax(-1).mean(1)
    return (each.argmax(-1) != y).double().mean(0)


ACCEPT = {"margin": margin, "expected_accuracy": single_draw_error}
"""What candidates are compared by, each larger where the attacker is better off."""


def unit_logits(z: Tensor) -> Tensor:
    """Return logits (units, batch, classes): means of each member's draws, or of groups of one member's."""
    if z.shape[1] > 1:
        return z.mean(0)
    return torch.stack([part.mean((0, 1)) for part in z.tensor_split(min(GROUPS, len(z)))])
