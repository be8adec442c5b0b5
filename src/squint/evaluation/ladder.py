"""The ladder: rung after rung of attacks, the worst point of every image kept for each scoring rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from squint._checks import (
    HasMemberLogits,
    check_images,
    check_labels,
    check_number,
    format_fraction,
)
from squint._random import derive_generator, next_seed
from squint.attacks.gradients import AnyModel, Units, nan_reported
from squint.attacks.modes import evaluation_mode
from squint.evaluation.budgets import Budget, Rung, named_budget
from squint.evaluation.climbs import UNBROKEN, Climb, RungRun
from squint.evaluation.frozen import frozen
from squint.evaluation.machine import device_of, in_memory
from squint.evaluation.metering import Meter
from squint.evaluation.moves import attack
from squint.evaluation.rungs import SPENT, Assault, obstacle, own_sources
from squint.evaluation.scoring import deployed_draws, is_random
from squint.evaluation.selection import DEPLOYED, SINGLE, Kept, error_share, rule_margins

RESUBMISSIONS = 64
"""Submissions on which candidates are compared, and on which an example must fail again to be retired."""
RETIRED = 0.9
BROKEN = 0.5

Progress = Callable[[str, int], None]
"""Called with the name of the rung that begins and the number of images that are still attacked."""


def climb(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    eps: float,
    budget: Budget | str,
    *,
    seed: int = 0,
    system: str = "model",
    batch: int = 0,
    draws: int | None = None,
    resubmissions: int = RESUBMISSIONS,
    sources: Mapping[str, AnyModel] | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
    retire: bool = True,
) -> Climb:
    """Return the per-example worst case of all rungs of the budget.

    Every rung starts from the best points so far and from one random start. Its candidates and the points
    kept so far are then compared, for each scoring rule, on one bank of noise of the selection stream that is
    new for each rung. An image is retired only when 90 % of the bank's resubmissions err and so do 90 % of as
    many fresh ones, under the deployed rule; the point kept for the single-draw rule then stays as it is,
    so that the accuracy of single draws is an upper bound: no rung after that looks for a worse point.

    The attack and selection streams derive from `seed`, `system`, budget, eps and `batch`; nothing here
    touches the score stream. When memory runs out, `chunk` is halved and the rung repeated with the same
    seeds. The chunk changes no draw's noise of a model that draws only seeds from its generator, as
    `squint.Ensemble` does (`squint.attacks.gradients.Units`), so the result is the same but
    for rounding.

    Args:
        model: logits (batch, classes), or `member_logits`; attacked in evaluation mode, left as it was found.
        x: images (n, ...) in [0, 1], on the model's device.
        y: labels (n,).
        eps: L∞ radius in [0, 1].
        budget: a `Budget` or the name of a preset.
        seed: base of all streams.
        system: name of the system; part of the streams' keys.
        batch: number of the batch; part of the streams' keys.
        draws: draws S of the deployed rule; None: the model's own.
        resubmissions: submissions for selection and retirement; 1 for a model known to be deterministic.
        sources: further models to transfer from, by name.
        chunk: draws whose graph is held in memory at once; None: all.
        progress: callback.
        retire: False: attack every image on every rung, for a model that belongs to its batch.

    Raises:
        squint.InputError: a value is out of range.
    """
    budget = named_budget(budget)
    check_images(x)
    check_labels(y, len(x))
    check_number("eps", eps, 0.0, 1.0)
    check_number("resubmissions", resubmissions, 1, whole=True)
    draws = int(check_number("draws", deployed_draws(model) if draws is None else draws, 1, whole=True))
    if not is_random(model):
        # All its draws are alike: more than one of them would only use the budget up.
        resubmissions, draws, budget = 1, 1, replace(budget.with_draws(1), name=budget.name)
    # Attacked are copies: nothing is computed twice in them, and the model stays as it is.
    model = frozen(model, precise=budget.precise)
    given = {name: frozen(source, precise=budget.precise) for name, source in (sources or {}).items()}
    sources = {**own_sources(model), **given}
    keys = (system, budget.name, format_fraction(eps), batch)
    images = x.detach().clamp(0.0, 1.0)
    state = _State(model, images, y, eps, seed, keys, draws, resubmissions, sources, chunk, retire)
    with ExitStack() as stack:
        for each in (model, *sources.values()):
            stack.enter_context(evaluation_mode(each))
        stack.enter_context(nan_reported())
        state.begin()
        for number, rung in enumerate(budget.rungs, 1):
            if progress is not None:
                progress(rung.name, len(state.alive))
            state.climb(number, rung, budget.max_gradients)
            if number == 1:
                first = state.points[DEPLOYED].clone()
    return Climb(
        state.points,
        state.margins,
        state.broken_by,
        state.gradients,
        state.forwards,
        tuple(state.runs),
        first,
    )


def as_attack(
    budget: Budget | str,
    *,
    sources: Mapping[str, AnyModel] | None = None,
    chunk: int | None = None,
    draws: int | None = None,
    retire: bool = True,
) -> Callable[[AnyModel, Tensor, Tensor, float, torch.Generator], Tensor]:
    """Return the climb as an attack (model, x, y, eps, generator) -> the deployed rule's worst points.

    For active tests of the ladder itself; the streams derive from one seed that the generator gives. `draws`
    are those of the deployed rule for models without `draws` of their own, which planted copies have;
    `retire` is `climb`'s.
    """

    def run(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        rule = None if hasattr(model, "draws") else draws
        seed = next_seed(generator)
        found = climb(
            model, x, y, eps, budget, seed=seed, draws=rule, sources=sources, chunk=chunk, retire=retire
        )
        return found.points[DEPLOYED]

    return run


def gains_by_batches(model: AnyModel, budget: Budget) -> bool:
    """Return whether planted images are better attacked together, none of them retired.

    A GPU waits for the launches of one image's kernels; on a CPU an image that is found early saves time.
    Moves that give each image draws of its own drop images from their batch.
    """
    alike = not any(move.adaptive for rung in budget.rungs for move in rung.moves)
    return alike and isinstance(model, nn.Module) and device_of(model).type == "cuda"


class _State:
    """The climb of one batch, in the middle of it."""

    def __init__(
        self,
        model: AnyModel,
        x: Tensor,
        y: Tensor,
        eps: float,
        seed: int,
        keys: tuple[object, ...],
        draws: int,
        resubmissions: int,
        sources: Mapping[str, AnyModel],
        chunk: int | None,
        retire: bool,
    ) -> None:
        self.model, self.x, self.y, self.eps = model, x, y, eps
        self.seed, self.keys = seed, keys
        self.draws, self.resubmissions = draws, resubmissions
        self.sources, self.chunk, self.retire = sources, chunk, retire
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.gradients, self.forwards, self.broken_by = count, count.clone(), count + UNBROKEN
        self.alive = torch.arange(len(x), device=x.device)
        self.points: dict[str, Tensor] = {}
        self.margins: dict[str, Tensor] = {}
        self.runs: list[RungRun] = []

    def begin(self) -> None:
        """Look at the clean images: they are the first points, and those that err are not attacked."""
        generator = derive_generator(self.seed, "selection", *self.keys, "shape")
        some = slice(0, 1 if self.retire else None)
        units = Units(self.model, self.y[some], 1).logits(self.x[some], next_seed(generator))
        self.members = units.shape[1] if isinstance(self.model, HasMemberLogits) else None
        self.classes = units.shape[-1]
        check_labels(self.y, len(self.x), self.classes)
        bank = self._bank(self.x, "selection", 0)
        kept = {rule: Kept(self.x.clone(), each) for rule, each in bank.items()}
        self.points = {rule: best.point for rule, best in kept.items()}
        self.margins = {rule: best.margin for rule, best in kept.items()}
        self._settle(0, kept)

    def climb(self, number: int, rung: Rung, limit: int | None) -> None:
        """Run one rung on the surviving images and keep what is better."""
        if not len(self.alive):
            self.runs.append(RungRun(rung.name, 0, 0, 0, 0.0, self.chunk))
            return
        started = time.perf_counter()

        def moves(chunk: int | None) -> tuple[list[Tensor], Meter, list[str]]:
            return self._moves(number, rung, limit, chunk)

        largest = max(move.eot for move in rung.moves)
        (candidates, meter, skipped), self.chunk = in_memory(moves, self.chunk, largest)
        self.gradients[self.alive] += meter.gradients
        self.forwards[self.alive] += meter.forwards
        kept = self._incumbents(number)
        for candidate in candidates:
            for rule, each in self._bank(candidate, "selection", number).items():
                kept[rule].offer(candidate, each)
        for rule, best in kept.items():
            self.points[rule][self.alive] = best.point
            self.margins[rule][self.alive] = best.margin
        survivors = len(self.alive)
        self._settle(number, kept)
        seconds = time.perf_counter() - started
        self.runs.append(
            RungRun(
                rung.name, survivors, meter.gradients, meter.forwards, seconds, self.chunk, tuple(skipped)
            )
        )

    def _moves(
        self, number: int, rung: Rung, limit: int | None, chunk: int | None
    ) -> tuple[list[Tensor], Meter, list[str]]:
        assault = Assault(
            self.model,
            self.members,
            self.classes,
            self.sources,
            self.x[self.alive],
            self.y[self.alive],
            self.eps,
            self.points[DEPLOYED][self.alive],
            self.seed,
            (*self.keys, number),
            chunk,
        )
        spent = int(self.gradients[self.alive].max())
        meter, candidates, skipped = Meter(), [], []
        for place, move in enumerate(rung.moves):
            reason = obstacle(move, assault)
            if limit is not None and spent + meter.gradients >= limit:
                reason = f"{move.attack}: the {limit:,} {SPENT}"
            if reason is not None:
                skipped.append(reason)
                continue
            candidates += attack(move, place, assault, meter)
        return candidates, meter, skipped

    def _incumbents(self, number: int) -> dict[str, Kept]:
        """Return the survivors' points of each rule, scored again on the bank of one rung."""
        points = {rule: kept[self.alive] for rule, kept in self.points.items()}
        bank = self._bank(points[DEPLOYED], "selection", number)
        alike = torch.equal(points[DEPLOYED], points[SINGLE])
        others = bank if alike else self._bank(points[SINGLE], "selection", number)
        return {
            DEPLOYED: Kept(points[DEPLOYED], bank[DEPLOYED]),
            SINGLE: Kept(points[SINGLE], others[SINGLE]),
        }

    def _bank(self, points: Tensor, purpose: str, number: int) -> dict[str, Tensor]:
        """Return the margins of the survivors' points by rule, on the noise of one rung and purpose."""
        return rule_margins(
            self.model,
            points,
            self.y[self.alive],
            draws=self.draws,
            resubmissions=self.resubmissions,
            generator=derive_generator(self.seed, "selection", purpose, *self.keys, number),
        )

    def _settle(self, number: int, kept: Mapping[str, Kept]) -> None:
        """Note which images broke, and retire those that fail again on fresh resubmissions."""
        errors = kept[DEPLOYED].errors
        broken = (errors >= BROKEN) & (self.broken_by[self.alive] == UNBROKEN)
        self.broken_by[self.alive[broken]] = number
        if self.retire and bool((errors >= RETIRED).any()):
            again = error_share(self._bank(kept[DEPLOYED].point, "retirement", number)[DEPLOYED])
            self.alive = self.alive[(errors < RETIRED) | (again < RETIRED)]
