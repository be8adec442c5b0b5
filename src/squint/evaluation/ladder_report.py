"""The ladder as `evaluate` reports it: its figure, with the red flags and active tests that judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from squint import _ranks
from squint import data as D
from squint._checks import format_fraction
from squint.attacks.gradients import AnyModel
from squint.evaluation.active import active_tests
from squint.evaluation.budgets import Budget, named_budget
from squint.evaluation.evidence_files import evidence_of, save_evidence
from squint.evaluation.ladder import as_attack
from squint.evaluation.ladder_result import LadderResult
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.preflight import preflight
from squint.evaluation.records import NO_ACTIVE_TESTS, Finding, Outcome, Record, RobustnessReport
from squint.evaluation.selection import DEPLOYED

ATTACK = "ladder"
_WITH_ACTIVE_TESTS = ("standard", "exhaustive")
_BLACK_BOXES = {"square", "spsa", "transfer"}

Progress = Callable[[int, int], None]


def ladder_report(
    model: AnyModel,
    data: D.Data,
    radii: Sequence[float],
    budget: Budget | str,
    *,
    system: str,
    draws: int,
    resubmissions: int,
    seed: int,
    limit: int | None,
    batch_size: int,
    tier: str,
    sources: Mapping[str, AnyModel] | None,
    folder: Path | None,
    progress: Progress | None,
    evidence: Path | None = None,
) -> RobustnessReport:
    """Return the ladder's figures at every radius, with their red flags.

    Preflight runs for every preset. The active tests (planted points, convergence gate) are part of
    "standard" and "exhaustive"; a "quick" figure is never trusted.

    Args:
        model: what is attacked.
        data: images in [0, 1] and labels.
        radii: L∞ radii.
        budget: a preset's name or a `Budget`.
        system: name in the records.
        draws: draws S per deployed prediction.
        resubmissions: fresh deployments R per image.
        seed: base of every stream.
        limit: images used, from the first; None: all.
        batch_size: images attacked at once.
        tier: training tier of the system.
        sources: further models to transfer from, by name.
        folder: where outcomes are kept, so that a stopped ladder goes on.
        progress: callback with images done and images in all.
        evidence: file for the worst examples at the last radius, which anyone can score again.
    """
    budget = named_budget(budget)
    images, labels = D.collect(data, limit)
    records, outcomes = [], []
    clean = None
    for place, radius in enumerate(radii):
        eps = format_fraction(radius)

        def tell(_: str, __: int, done: int, before: int = place * len(images)) -> None:
            if progress is not None:
                progress(before + done, len(images) * len(radii))

        result = run_ladder(
            model,
            (images, labels),
            radius,
            budget,
            system=system,
            sources=sources,
            draws=draws,
            resubmissions=resubmissions,
            seed=seed,
            batch_size=batch_size,
            folder=None if folder is None else folder / eps.replace("/", "-"),
            progress=tell,
        )
        clean = result.clean.correct
        found = result.climb.points[DEPLOYED]
        flags = _flags(model, (images, labels), radius, budget, seed, draws, sources, found)
        records.append(_record(result, budget, system, eps, seed, tier, flags))
        if evidence is not None and _ranks.rank() == 0:
            save_evidence(evidence, evidence_of(result))
        outcomes.append(Outcome(ATTACK, radius, result.climb.points[DEPLOYED], result.deployed.correct))
    assert clean is not None
    return RobustnessReport(system, tuple(records), tuple(outcomes), clean)


def _flags(
    model: AnyModel,
    data: D.Batch,
    eps: float,
    budget: Budget,
    seed: int,
    draws: int,
    sources: Mapping[str, AnyModel] | None,
    found: Tensor,
) -> list[Finding]:
    """Return what speaks against the figure: preflight, and the active tests or their absence.

    `found` are the ladder's points (n, ...). Where no black box is among its rungs it is itself the white box
    that none may beat.
    """
    asks = {move.attack for rung in budget.rungs for move in rung.moves}
    flags = preflight(
        model,
        data,
        eps,
        seed=seed,
        sources=list((sources or {}).values()),
        draws=draws,
        found=None if asks & _BLACK_BOXES else found,
    )
    if budget.name not in _WITH_ACTIVE_TESTS:
        return [*flags, NO_ACTIVE_TESTS]
    tests = active_tests(
        model,
        data,
        eps,
        seed=seed,
        attack=as_attack(budget, sources=sources),
        doubled=as_attack(budget.doubled(), sources=sources),
        planted_batch=1,
        draws=draws,
        found=found,
    )
    return [*flags, *tests.findings]


def _record(
    result: LadderResult,
    budget: Budget,
    system: str,
    eps: str,
    seed: int,
    tier: str,
    flags: Sequence[Finding],
) -> Record:
    summary = result.summary()
    moves = [move for rung in budget.rungs for move in rung.moves]
    return Record(
        system=system,
        attack=ATTACK,
        preset=budget.name,
        norm="linf",
        eps=eps,
        steps=max((move.steps for move in moves), default=0),
        eot=max((move.eot for move in moves), default=0),
        # Every rung starts from the best points so far and from one random start.
        restarts=2,
        n=summary["n"],
        draws=summary["draws"],
        seed=seed,
        clean_accuracy=summary["clean_accuracy"],
        clean_ci95=tuple(summary["clean_ci95"]),
        robust_accuracy=summary["robust_accuracy"],
        ci95=tuple(summary["ci95"]),
        single_draw_accuracy=summary["single_draw_accuracy"],
        persistent_accuracy=summary["persistent"]["10"],
        persistent=summary["persistent"],
        clean_persistent=summary["clean_persistent"],
        seconds=result.seconds,
        tier=tier,
        red_flags=tuple(flags),
        trusted=not flags,
        details=summary,
    )
