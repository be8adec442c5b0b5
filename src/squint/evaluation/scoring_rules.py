"""Further ways to score what the ladder kept: known randomness, other numbers of draws, bytes, margins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits
from squint._random import derive_generator, draw_noise, draw_seeds, next_seed, noise
from squint.attacks.gradients import AnyModel
from squint.attacks.objectives import log_mean_probability
from squint.ensemble import Ensemble, varies
from squint.evaluation.budgets import Budget
from squint.evaluation.ladder import climb
from squint.evaluation.scoring import errors_of, pooled
from squint.evaluation.selection import DEPLOYED, margins, rule_margins

SWEEP = (1, 4, 16, 64)
"""Draws S per deployment that a report compares."""
SWEEP_DRAWS = 1024
"""Most draws spent per image and S; with many draws per deployment there are fewer resubmissions."""
KNOWN_RUNGS = 2
CLOSE = 0.1
"""A margin closer to zero than this is worth a remark."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class FixedDraws:
    """A model whose deployment always draws the same noise: one fixed set of S draws, whatever the batch.

    Every image meets the noise that it would meet alone in a batch of one, as with a seed that leaks or a
    runtime that repeats its noise. Deterministic, and differentiable as the model is. The noise must come
    from squint's context or from `member_logits(generator=...)`.

    Args:
        model: what is deployed, in evaluation mode.
        draws: draws S per deployment; without `member_logits` a deployment is one call.
        seed: fixes the noise.
    """

    def __init__(self, model: AnyModel, draws: int, seed: int) -> None:
        self.model, self.draws, self.seed = model, draws, seed

    def __call__(self, x: Tensor) -> Tensor:
        """Return the log probability (batch, classes), pooled as the model deploys, over the fixed draws."""
        model = self.model
        if isinstance(model, HasMemberLogits):
            units = self.units(model, x)
            if hasattr(model, "pool_members"):
                return pooled(model, units.double().softmax(-1)).mean(0).log()
            return log_mean_probability(units)
        if isinstance(model, nn.Module):
            return _alike(model, x, [self.seed])[0].log_softmax(-1)
        rows, generator = [], torch.Generator()
        for i in range(len(x)):
            generator.manual_seed(self.seed)
            with noise(generator):
                rows.append(model(x[i : i + 1]))
        return torch.cat(rows).log_softmax(-1)

    def units(self, model: HasMemberLogits, x: Tensor) -> Tensor:
        """Return the members' logits under the fixed draws, (draws, members, batch, classes)."""
        generator = torch.Generator().manual_seed(self.seed)
        if isinstance(model, Ensemble):
            units = []
            for member in model.members:
                seeds, _ = draw_seeds(generator, self.draws)
                logits = _alike(member, x, seeds) if varies(member) else member(x).unsqueeze(0)
                units.append(logits.expand(self.draws, -1, -1))
            return torch.stack(units, 1)
        alone = []
        for i in range(len(x)):
            generator.manual_seed(self.seed)
            alone.append(model.member_logits(x[i : i + 1], self.draws, generator=generator))
        return torch.cat(alone, 2)


class FixedPool(FixedDraws):
    """Fixed draws of a model that pools its members in a way of its own, which may have no gradient (a vote).

    Every draw of every member is a member of this one: attacks ascend their mean probability, as they do for
    the model itself, and candidates are compared and scored by what the model deploys.
    """

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return the same logits for every draw, (draws, fixed draws · members, batch, classes)."""
        del generator, stratified
        units = self.units(cast(HasMemberLogits, self.model), x)
        return units.flatten(0, 1).expand(draws, -1, -1, -1)

    def pool_members(self, probabilities: Tensor) -> Tensor:
        """Return probabilities (draws, fixed draws · members, batch, classes) pooled to (draws, ...)."""
        model = cast(HasMemberLogits, self.model)
        each = [pooled(model, draw.unflatten(0, (self.draws, -1))).mean(0) for draw in probabilities]
        return torch.stack(each)


def _alike(module: nn.Module, x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return the module's logits (draws, batch, classes); a draw has the same noise for every image."""
    with draw_noise(seeds, copies=len(x)):
        logits: Tensor = module(torch.cat([x] * len(seeds)))
    return logits.view(len(seeds), len(x), -1)


@dataclass(frozen=True, eq=False)
class Known:
    """The outcome against an attacker who knows the noise.

    Attributes:
        points: worst images found (n, ...).
        wrong: whether the fixed deployment errs on them (n,).
        clean_wrong: whether it errs on the clean images (n,).
    """

    points: Tensor
    wrong: Tensor
    clean_wrong: Tensor


@torch.no_grad()
def _repeats(fixed: FixedDraws, x: Tensor) -> bool:
    return torch.equal(fixed(x[:2]), fixed(x[:2]))


def known_randomness(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    eps: float,
    budget: Budget,
    *,
    draws: int,
    seed: int,
    system: str,
    batch: int,
    chunk: int | None = None,
) -> Known | None:
    """Return the first two rungs' worst case against one fixed set of S draws, scored on that very set.

    The fixed set has a stream of its own and is the same for all images and batches. Draws per gradient are
    those of the set. None where the model does not repeat itself: its noise is out of squint's reach.
    """
    kind = FixedPool if hasattr(model, "pool_members") else FixedDraws
    fixed = kind(model, draws, next_seed(derive_generator(seed, "known", system)))
    if not _repeats(fixed, x):
        return None
    short = budget.first(KNOWN_RUNGS).with_draws(1)
    found = climb(
        fixed,
        x,
        y,
        eps,
        short,
        seed=seed,
        system=f"{system}, known randomness",
        batch=batch,
        draws=1,
        resubmissions=1,
        chunk=chunk,
    ).points[DEPLOYED]
    with torch.no_grad():
        wrong, clean = ((margins(fixed(points).double(), y) < 0) for points in (found, x))
    return Known(found, wrong, clean)


@dataclass(frozen=True, eq=False)
class SweepPoint:
    """The deployed rule with another number of draws.

    Attributes:
        draws: draws S per deployment.
        resubmissions: deployments R.
        errors: deployments that erred (n,).
        seconds: wall time of one deployment of one image, at the pace of draws in a batch.
    """

    draws: int
    resubmissions: int
    errors: Tensor
    seconds: float

    @property
    def accuracy(self) -> float:
        """Mean over images of the share of deployments that are correct."""
        return 1 - float(self.errors.double().mean()) / self.resubmissions


@torch.no_grad()
def sweep(
    model: HasMemberLogits,
    points: Tensor,
    y: Tensor,
    *,
    resubmissions: int,
    seed: int,
    keys: tuple[object, ...],
    counts: tuple[int, ...] = SWEEP,
) -> tuple[SweepPoint, ...]:
    """Return the scores of the same points with each number of draws S, on the score stream.

    The points are those kept for the model's own S. All S group the same draws, one after the other, into
    deployments of their own: each figure is what fresh draws would give, and their differences are paired.
    """
    largest = max(counts)
    wanted = {draws: max(1, min(resubmissions, SWEEP_DRAWS // draws)) for draws in counts}
    done, errors = dict.fromkeys(counts, 0), {draws: torch.zeros_like(y) for draws in counts}
    generator = derive_generator(seed, "score", *keys, "sweep")
    started, taken = time.perf_counter(), 0
    while any(done[draws] < wanted[draws] for draws in counts):
        logits = model.member_logits(points, largest, generator=generator)
        probabilities = pooled(model, logits.double().softmax(-1))
        taken += largest
        for draws in counts:
            tries = min(largest // draws, wanted[draws] - done[draws])
            grouped = probabilities[: tries * draws].view(tries, draws, *probabilities.shape[1:])
            errors[draws] += errors_of(grouped.mean(1), y).sum(0)
            done[draws] += tries
    pace = (time.perf_counter() - started) / (taken * len(y))
    return tuple(SweepPoint(draws, done[draws], errors[draws].cpu(), pace * draws) for draws in counts)


def pooled_margins(
    model: AnyModel,
    points: Tensor,
    y: Tensor,
    *,
    draws: int,
    resubmissions: int,
    seed: int,
    keys: tuple[object, ...],
) -> Tensor:
    """Return each image's mean margin ℓ_y − max ℓ_j of the deployed rule (n,), on the score stream."""
    generator = derive_generator(seed, "score", *keys, "margins")
    each = rule_margins(model, points, y, draws=draws, resubmissions=resubmissions, generator=generator)
    return each[DEPLOYED].mean(0)


def margin_summary(values: Tensor) -> dict[str, float]:
    """Return the share of margins within 0.1 of zero, and quantiles, as plain numbers."""
    finite = values.double().cpu().clamp(-1e6, 1e6)
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    return {
        "below_0.1": float((finite.abs() < CLOSE).double().mean()),
        **{f"q{100 * q:g}": float(v) for q, v in zip(QUANTILES, finite.quantile(levels), strict=True)},
    }


def to_bytes(points: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the points as uint8 that stay within eps of x: the nearest byte, or the next towards x.

    Where no byte is within eps of a pixel of x the byte nearest to x is taken.

    Args:
        points: images (n, ...) in [0, 1], within eps of x.
        x: clean images (n, ...) in [0, 1].
        eps: L∞ radius.
    """
    clean, reach = x.double() * 255, eps * 255 + 1e-3
    low, high = (clean - reach).ceil(), (clean + reach).floor()
    nearest = clean.round()
    rounded = (points.double() * 255).round()
    inside = torch.minimum(torch.maximum(rounded, low), high)
    return torch.where(low <= high, inside, nearest).clamp(0, 255).to(torch.uint8)
