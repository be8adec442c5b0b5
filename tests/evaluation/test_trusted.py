"""A trained stochastic network whose figure is trusted: every rung, preflight and active test, few steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from benchmarks.standard import DRAWS, networks

from squint.evaluation import evaluate, ladder_report
from squint.evaluation.active import active_tests
from squint.evaluation.budgets import PRESETS, STANDARD, Budget, Move
from squint.evaluation.preflight import preflight
from squint.evaluation.preflight_runs import Probes
from tests.evaluation.graveyard import nets


def shortened(move: Move) -> Move:
    """Return the move with a tenth of its steps and a fifth of its draws."""
    refine = move.refine // 10 if move.attack == "targeted" else move.refine
    return replace(move, steps=max(4, move.steps // 10), eot=max(4, move.eot // 5), refine=max(1, refine))


def short() -> Budget:
    """Return `standard` with all of its moves, each of them short."""
    rungs = tuple(replace(rung, moves=tuple(shortened(m) for m in rung.moves)) for rung in STANDARD.rungs)
    return replace(STANDARD, rungs=rungs, resubmissions=64)


def check(monkeypatch: pytest.MonkeyPatch, eps: float) -> None:
    monkeypatch.setitem(PRESETS, "standard", short())
    model, undefended = networks(epochs=6)
    data = nets.images(100)
    report = evaluate(model, data, eps, "standard", sources={"undefended": undefended}, system="stochastic")
    (record,) = report.records
    assert [flag.message for flag in record.red_flags] == []
    assert record.trusted
    assert record.draws == DRAWS
    assert set(record.details["sources"]) >= {"undefended", "deterministic twin"}
    tests = record.details["active_tests"]
    assert tests["planted_total"] >= 0.8 * tests["planted_tried"]
    assert tests["planted_found"] >= 0.95 * tests["planted_total"]
    assert tests["planted_draws"] == DRAWS
    # The attack is no idle one: it takes what plain PGD takes, and more.
    seed = evaluate(model, data, eps, "seed").records[0]
    assert record.robust_accuracy < seed.robust_accuracy < record.clean_accuracy


def test_a_trained_stochastic_network_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every probe of preflight and every active test is asked, on fewer images than usual."""
    probes = Probes(
        images=50,
        batch_size=50,
        steps=(5, 20),
        eot=(1, 4),
        square_steps=100,
        spsa_steps=5,
        spsa_directions=16,
        transfer_steps=20,
    )
    monkeypatch.setattr(ladder_report, "preflight", partial(preflight, probes=probes))
    monkeypatch.setattr(ladder_report, "active_tests", partial(active_tests, planted=12))
    check(monkeypatch, 48 / 255)


@pytest.mark.slow
def test_a_trained_stochastic_network_is_trusted_by_whole_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, 40 / 255)
