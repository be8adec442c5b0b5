"""The ladder as `evaluate` reports it: its figure, with the red flags and active tests that judge it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from squint import _ranks
from squint import data as D
from squint._checks import format_fraction
from squint.attacks.gradients import AnyModel
from squint.evaluation.active import active_tests
from squint.evaluation.batch_outcomes import without_data
from squint.evaluation.budgets import Budget, named_budget
from squint.evaluation.evidence_files import evidence_of, save_evidence
from squint.evaluation.first_rung import early_fall
from squint.evaluation.flags import late_falls, moves_skipped, small_sample
from squint.evaluation.kept_parts import KeptParts
from squint.evaluation.ladder import as_attack, gains_by_batches
from squint.evaluation.ladder_result import LadderResult
from squint.evaluation.ladder_run import DONE, run_ladder
from squint.evaluation.machine import Fitting
from squint.evaluation.model_flags import nan_outputs
from squint.evaluation.preflight import preflight
from squint.evaluation.preflight_runs import Probes
from squint.evaluation.provenance import makers, mixed_code
from squint.evaluation.records import (
    LADDER,
    NO_ACTIVE_TESTS,
    WHOLE_LADDERS,
    Finding,
    Outcome,
    Record,
    RobustnessReport,
)
from squint.evaluation.rungs import own_sources
from squint.evaluation.scoring import is_random
from squint.evaluation.selection import DEPLOYED
from squint.quantize.modes import quantizers

JUDGED = "judged"
"""Where a ladder's folder keeps what preflight and the active tests have done."""
JUDGED_AT_ONCE = 25
"""Most images of the convergence gate and the control that are attacked, and then kept, at once."""
_BLACK_BOXES = {"square", "spsa", "transfer"}
_WITHOUT_GRADIENT = {"square", "spsa"}

_NO_CONTROL = Finding(
    "no_noise_control",
    "no source is an undefended network, so that the control (8-bit noise must not protect it) was not run",
    {},
)

Progress = Callable[[int, int, str], None]
"""Called with images done, images in all, and the rung that begins with its survivors, or no words."""


def ladder_report(
    model: AnyModel,
    data: D.Data,
    radii: Sequence[float],
    budget: Budget | str,
    *,
    system: str,
    draws: int,
    resubmissions: int | None,
    seed: int,
    limit: int | None,
    batch_size: int,
    tier: str,
    sources: Mapping[str, AnyModel] | None,
    folder: Path | None,
    progress: Progress | None,
    evidence: Path | None = None,
    ceilings: Mapping[float, float | None] | None = None,
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
        resubmissions: fresh deployments R per image; None: the budget's.
        seed: base of every stream.
        limit: images used, from the first; None: all.
        batch_size: images attacked at once, and kept once that is done; so are those of the active tests.
        tier: training tier of the system.
        sources: further models to transfer from, by name.
        folder: where outcomes are kept, so that a stopped ladder goes on.
        progress: callback with images done, images in all and a note.
        evidence: file for the worst examples at the first radius, which anyone can score again; of images
            (n, channels, height, width) only.
        ceilings: further radii with the highest credible accuracy, as in `preflight`.
    """
    budget = named_budget(budget)
    images, labels = D.collect(data, limit)
    records, outcomes = [], []
    clean = None
    for turn, radius in enumerate(radii):
        eps = format_fraction(radius)
        place = None if folder is None else folder / eps.replace("/", "-")
        judged = None if place is None else place / JUDGED

        def tell(rung: str, alive: int, done: int, before: int = turn * len(images)) -> None:
            if progress is not None:
                note = "" if rung == DONE else f"{rung}, {alive} left"
                progress(before + done, len(images) * len(radii), note)

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
            folder=place,
            progress=tell,
        )
        clean = result.clean.correct
        found = result.climb.points[DEPLOYED]
        held = min((run.chunk for run in result.climb.rungs if run.chunk is not None), default=None)
        kept = KeptParts(judged, partial(_judged, result.configuration, ceilings))

        def note(words: str, before: int = (turn + 1) * len(images)) -> None:
            if progress is not None:
                progress(before, len(images) * len(radii), words)

        at_once = min(batch_size, JUDGED_AT_ONCE)
        given = (model, (images, labels), radius, budget, seed, draws, sources, found, ceilings, held)
        flags, tests = _flags(*given, kept, at_once, note)
        flags += nan_outputs({"clean images": result.clean, "attacked images": result.deployed})
        flags += small_sample(result.deployed) + early_fall(result.first_rung)
        flags += late_falls(result.climb.broken_by, budget.rungs)
        made_by = makers([each for each in (place, judged) if each is not None])
        flags += mixed_code(made_by)
        if budget.name in WHOLE_LADDERS:
            flags += moves_skipped([reason for run in result.climb.rungs for reason in run.skipped])
        tried = (*own_sources(model), *(sources or {}))
        record = _record(result, budget, system, eps, seed, tier, flags, tried)
        record.details.update(tests, made_by=made_by)
        records.append(record)
        if evidence is not None and not turn and images.ndim == 4 and _ranks.rank() == 0:
            save_evidence(evidence, evidence_of(result))
        outcomes.append(Outcome(LADDER, radius, result.climb.points[DEPLOYED], result.deployed.correct))
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
    ceilings: Mapping[float, float | None] | None,
    held: int | None,
    kept: KeptParts,
    at_once: int,
    note: Callable[[str], None],
) -> tuple[list[Finding], dict[str, Any]]:
    """Return what speaks against the figure, preflight and active tests or their absence, and their measures.

    `found` are the ladder's points (n, ...). Where no black box is among its rungs it is itself the white box
    that none may beat. Without sources the model's own members and twin are transferred from. `held` is how
    many draws at once the ladder found to fit into memory, None for all. `kept` are the parts of both that
    are done, `at_once` images of the active tests, and `note` is told which of them begins.
    """
    fitting = Fitting(draws=held)
    asks = {move.attack for rung in budget.rungs for move in rung.moves}
    note("preflight")
    seen: dict[str, Any] = {}
    flags = preflight(
        model,
        data,
        eps,
        seed=seed,
        sources=list((sources or own_sources(model)).values()),
        ceilings=ceilings,
        draws=draws,
        found=None if asks & _BLACK_BOXES else found,
        worst=found,
        measured=seen,
        fitting=fitting,
        kept=kept,
    )
    if budget.name not in WHOLE_LADDERS:
        note("")
        return [*flags, NO_ACTIVE_TESTS], {"preflight": seen}
    undefended = _undefended(sources or {})
    if undefended is None:
        flags.append(_NO_CONTROL)
    note("active tests")
    run = partial(as_attack, sources=sources, draws=draws, chunk=fitting.draws)
    together = gains_by_batches(model, budget)
    with fitting.kept(model):
        tests = active_tests(
            model,
            data,
            eps,
            seed=seed,
            attack=run(budget),
            doubled=run(budget.doubled()),
            undefended=undefended,
            planted_batch=at_once if together else 1,
            planted_attack=run(budget, retire=False) if together else None,
            batch_size=at_once,
            draws=draws,
            found=found,
            kept=kept,
        )
    note("")
    measured = {name: value for name, value in asdict(tests).items() if name != "findings"}
    return [*flags, *tests.findings], {"preflight": seen, "active_tests": measured}


def _judged(
    configuration: Mapping[str, Any], ceilings: Mapping[float, float | None] | None
) -> dict[str, Any]:
    """Return what preflight and active tests depend on beside images and points, which their parts name."""
    return {
        **without_data(configuration),
        "ceilings": sorted(map(list, (ceilings or {}).items())),
        "probes": asdict(Probes()),
    }


def _undefended(sources: Mapping[str, AnyModel]) -> nn.Module | None:
    """Return the first source without noise or quantizers, which 8-bit noise must not make robust."""
    plain = (source for source in sources.values() if isinstance(source, nn.Module))
    return next((each for each in plain if not is_random(each) and not any(quantizers(each))), None)


def _record(
    result: LadderResult,
    budget: Budget,
    system: str,
    eps: str,
    seed: int,
    tier: str,
    flags: Sequence[Finding],
    sources: Sequence[str],
) -> Record:
    summary = result.summary()
    moves = [move for rung in budget.rungs for move in rung.moves if move.attack not in _WITHOUT_GRADIENT]
    eot = max((move.eot for move in moves), default=0)
    return Record(
        system=system,
        attack=LADDER,
        preset=budget.name,
        norm="linf",
        eps=eps,
        steps=max((move.steps for move in moves), default=0),
        # Without noise all draws are alike, and the ladder takes one.
        eot=eot if result.deployed.random else min(eot, 1),
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
        details=summary
        | {
            "budget": result.configuration["budget"],
            "sources": list(sources),
            "skipped": [reason for run in result.climb.rungs for reason in run.skipped],
        },
    )
