"""`run_ladder`: climb, score and record many images, batch by batch, with a folder to take it up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from squint import _ranks
from squint import data as D
from squint._checks import HasMemberLogits, InputError, check_number, format_fraction, parse_fraction
from squint.attacks.gradients import AnyModel
from squint.attacks.modes import evaluation_mode
from squint.data.dataset import to_unit
from squint.evaluation.arrays import Array
from squint.evaluation.batch_outcomes import BatchOutcomes, as_array, digest, model_digest
from squint.evaluation.budgets import Budget, named_budget
from squint.evaluation.first_rung import first_rung, is_compared
from squint.evaluation.frozen import frozen
from squint.evaluation.ladder import climb
from squint.evaluation.ladder_kept import assembled
from squint.evaluation.ladder_result import LadderResult, assemble
from squint.evaluation.scoring import Scores, deployed_draws, is_random, score
from squint.evaluation.scoring_rules import SWEEP, known_randomness, pooled_margins, sweep, to_bytes
from squint.evaluation.selection import DEPLOYED, SINGLE
from squint.evaluation.sharding import sharded

LadderProgress = Callable[[str, int, int], None]
"""Called with the rung that begins, the images of its batch that survive, and the images done before."""

DONE = "done"
"""Stands for a rung where a batch is finished."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is the same for every batch."""

    model: AnyModel
    eps: float
    budget: Budget
    system: str
    sources: Mapping[str, AnyModel]
    draws: int
    resubmissions: int
    seed: int
    known: bool
    counts: tuple[int, ...]
    chunk: int | None


def run_ladder(
    model: AnyModel,
    data: D.Data,
    eps: float | str,
    budget: Budget | str = "standard",
    *,
    system: str = "model",
    sources: Mapping[str, AnyModel] | None = None,
    draws: int | None = None,
    resubmissions: int | None = None,
    known: bool = True,
    counts: tuple[int, ...] = SWEEP,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 100,
    chunk: int | None = None,
    folder: Path | str | None = None,
    progress: LadderProgress | None = None,
) -> LadderResult:
    """Return the per-example worst case over the budget's rungs, scored once under every rule.

    The attack, selection, score and known-randomness streams are disjoint: each derives from `seed` and its
    own purpose. The same arguments on the same device give the same result, whether or not it was
    interrupted, and however many processes share the batches (all call this alike); only seconds differ.

    Args:
        model: logits (batch, classes), or `member_logits`.
        data: images in [0, 1] and labels: a pair, an `ImageData` or an iterable of pairs.
        eps: L∞ radius, a number or text such as "5/255".
        budget: "quick", "standard", "exhaustive" or a `Budget`.
        system: name in the records; part of the streams' keys.
        sources: further models to transfer from, by name: an undefended network, an unquantized average, an
            adversarially trained one. Members and the deterministic twin are added.
        draws: draws S per deployment; None: the model's own.
        resubmissions: deployments R that are scored, 64 or more for a figure; None: the budget's. The
            persistent attacker with q tries needs 4 q.
        known: also climb the first two rungs against one fixed set of draws.
        counts: other numbers of draws S to score.
        seed: base of every stream.
        limit: images used, from the first; None: all.
        batch_size: images attacked at once; part of the streams' keys.
        chunk: draws whose graph is held in memory at once, halved when memory runs out; None: all.
        folder: where each batch's outcome is written; the same configuration continues there, as does one
            of more images.
        progress: callback.

    Raises:
        squint.InputError: an argument is not allowed, or `folder` holds another configuration's outcomes.
    """
    budget = named_budget(budget)
    radius = parse_fraction("eps", eps)
    check_number("batch_size", batch_size, 1, whole=True)
    tries = check_number(
        "resubmissions", budget.resubmissions if resubmissions is None else resubmissions, 1, whole=True
    )
    own = check_number("draws", deployed_draws(model) if draws is None else draws, 1, whole=True)
    if own > 1 and not isinstance(model, HasMemberLogits):
        raise InputError(
            f"draws is {own}; allowed: 1 for a model without member_logits, which is called once"
        )
    images, labels = D.collect(data, limit)
    plan = _Plan(model, radius, budget, system, dict(sources or {}), own, tries, seed, known, counts, chunk)
    configuration = _configuration(plan, images, labels, batch_size, kept=folder is not None)
    store = None if folder is None else BatchOutcomes(Path(folder), configuration, (images, labels))
    plan = replace(plan, model=frozen(model))

    def outcome(batch: int) -> tuple[dict[str, Array], dict[str, Any]]:
        first = batch * batch_size
        x, y = images[first : first + batch_size], labels[first : first + batch_size]
        # The last batch of few images is not that of more.
        name = batch if len(x) == batch_size else f"batch-{batch:05d}-of-{len(x)}"
        part = None if store is None else store.load(name)
        if part is None:
            part = _batch(plan, batch, x, y, first, progress)
            if store is not None:
                store.save(name, *part)
        if progress is not None:
            progress(DONE, 0, min(first + batch_size * _ranks.count(), len(images)))
        return part

    with evaluation_mode(model):
        parts = sharded(-(-len(images) // batch_size), outcome, f"ladder on {system}")
    if folder is not None:
        return assembled(configuration, labels, images, parts, Path(folder))
    return assemble(configuration, labels, images, parts)


def _batch(
    plan: _Plan, batch: int, x: Tensor, y: Tensor, done: int, progress: LadderProgress | None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return one batch's outcome as arrays and plain data."""
    started = time.perf_counter()
    device = device_of(plan.model)
    x, y = x.to(device), y.to(device)
    climbed = climb(
        plan.model,
        x,
        y,
        plan.eps,
        plan.budget,
        seed=plan.seed,
        system=plan.system,
        batch=batch,
        draws=plan.draws,
        sources=plan.sources,
        chunk=plan.chunk,
        progress=None if progress is None else lambda name, alive: progress(name, alive, done),
    )
    keys = (plan.system, plan.budget.name, format_fraction(plan.eps), batch)
    worst = climbed.points[DEPLOYED]
    rounded = to_bytes(worst, x, plan.eps)

    def scored(points: Tensor, purpose: str) -> Scores:
        return score(
            plan.model,
            points,
            y,
            draws=plan.draws,
            resubmissions=plan.resubmissions,
            seed=plan.seed,
            keys=(*keys, purpose),
        )

    scores = {
        "clean": scored(x, "clean"),
        "deployed": scored(worst, "deployed"),
        "single": scored(climbed.points[SINGLE], "single"),
        "uint8": scored(to_unit(rounded).to(x), "uint8"),
    }
    if climbed.first is not None and is_compared(plan.budget):
        both = first_rung(
            plan.model,
            x,
            y,
            plan.eps,
            climbed.first,
            seed=plan.seed,
            keys=keys,
            draws=plan.draws,
            chunk=climbed.rungs[-1].chunk,
        )
        scores |= {"first_rung": both.targeted, "plain_pgd": both.plain}
    arrays = {
        **{f"point_{rule}": as_array(points) for rule, points in climbed.points.items()},
        **{f"margin_{rule}": as_array(values) for rule, values in climbed.margins.items()},
        "point_uint8": as_array(rounded),
        "broken_by": as_array(climbed.broken_by),
        "gradients": as_array(climbed.gradients),
        "forwards": as_array(climbed.forwards),
        **{f"{name}_errors": as_array(s.errors) for name, s in scores.items()},
        **{f"{name}_single_errors": as_array(s.single_errors) for name, s in scores.items()},
        **{f"{name}_nan": as_array(s.nan) for name, s in scores.items() if s.nan is not None},
    }
    for name, points in (("clean", x), ("deployed", worst)):
        values = pooled_margins(
            plan.model,
            points,
            y,
            draws=plan.draws,
            resubmissions=plan.resubmissions if scores[name].random else 1,
            seed=plan.seed,
            keys=(*keys, name),
        )
        arrays[f"{name}_margin"] = as_array(values)
    plain: dict[str, Any] = {
        "scores": {
            name: {"resubmissions": s.resubmissions, "draws": s.draws, "random": s.random}
            for name, s in scores.items()
        },
        "rungs": [asdict(run) for run in climbed.rungs],
    }
    if isinstance(plan.model, HasMemberLogits) and scores["clean"].random:
        others = sweep(
            plan.model,
            worst,
            y,
            resubmissions=plan.resubmissions,
            seed=plan.seed,
            keys=keys,
            counts=plan.counts,
        )
        arrays |= {f"sweep_{p.draws}": as_array(p.errors) for p in others}
        plain["sweep"] = [
            {"draws": p.draws, "resubmissions": p.resubmissions, "seconds": p.seconds} for p in others
        ]
    if plan.known and is_random(plan.model):
        found = known_randomness(
            plan.model,
            x,
            y,
            plan.eps,
            plan.budget,
            draws=plan.draws,
            seed=plan.seed,
            system=plan.system,
            batch=batch,
            chunk=plan.chunk,
        )
        if found is not None:
            arrays |= {"known_wrong": as_array(found.wrong), "known_clean_wrong": as_array(found.clean_wrong)}
    plain["seconds"] = time.perf_counter() - started
    return arrays, plain


def _configuration(
    plan: _Plan, images: Tensor, labels: Tensor, batch_size: int, *, kept: bool
) -> dict[str, Any]:
    """Return what a result depends on, as plain data; `chunk` is the machine's and left out.

    Where outcomes are kept in a folder, models are told apart by what they do, too.
    """

    def known(model: AnyModel) -> str:
        return model_digest(model, images, device_of(model)) if kept else digest(model)

    return {
        "system": plan.system,
        "model": known(plan.model),
        "sources": {name: known(source) for name, source in plan.sources.items()},
        "data": digest(images, labels),
        "n": len(images),
        "eps": format_fraction(plan.eps),
        "eps_value": plan.eps,
        "budget": asdict(plan.budget),
        "draws": plan.draws,
        "resubmissions": plan.resubmissions,
        "known": plan.known,
        "counts": list(plan.counts),
        "seed": plan.seed,
        "batch_size": batch_size,
        **({"beside": "plain PGD"} if is_compared(plan.budget) else {}),
    }


def device_of(model: object) -> torch.device:
    """Return the device of a module's first tensor; the CPU for anything else."""
    if isinstance(model, nn.Module):
        for tensor in [*model.parameters(), *model.buffers()]:
            return tensor.device
    return torch.device("cpu")
