"""A ladder that ran out of gradients is untrusted, and finite differences count as a black box."""

from __future__ import annotations

import pytest
import torch

from squint.evaluation import evaluate
from squint.evaluation.active_findings import ActiveTests
from squint.evaluation.budgets import EXHAUSTIVE, PRESETS, STANDARD, Budget, Move, Rung
from squint.evaluation.flags import late_falls, moves_skipped
from squint.evaluation.rungs import SPENT
from tests.evaluation.graveyard import nets


@pytest.mark.parametrize("budget", [STANDARD, EXHAUSTIVE])
def test_a_fall_to_finite_differences_is_a_fall_to_a_black_box(budget: Budget) -> None:
    (number,) = [i for i, r in enumerate(budget.rungs, 1) if "spsa" in {move.attack for move in r.moves}]
    (finding,) = late_falls(torch.full((100,), number), budget.rungs)
    assert finding.kind == "masking_suspected"


def test_moves_that_were_left_out_for_want_of_gradients_are_found() -> None:
    assert moves_skipped(["mora: the model has no member_logits"]) == []
    (finding,) = moves_skipped(["mora: the model has no member_logits", f"transfer: the 20 {SPENT}"])
    assert finding.kind == "moves_skipped"
    assert finding.measured == {"moves": ["transfer: the 20 gradients are spent"]}


@pytest.mark.parametrize(("name", "found"), [("standard", True), ("quick", False)])
def test_a_ladder_that_ran_out_of_gradients_is_untrusted(
    monkeypatch: pytest.MonkeyPatch, name: str, found: bool
) -> None:
    rungs = (Rung("first", (Move("pgd", 2, 1), Move("pgd", 1, 1, "random"))),)
    monkeypatch.setitem(PRESETS, name, Budget(name, rungs, max_gradients=2, resubmissions=4))
    monkeypatch.setattr("squint.evaluation.ladder_report.preflight", lambda *_, **__: [])
    passed = ActiveTests(10, 10, 10, 1, 0.0, 0.0, True, ())
    monkeypatch.setattr("squint.evaluation.ladder_report.active_tests", lambda *_, **__: passed)
    record = evaluate(nets.undefended(), nets.images(4), "1/255", name).records[0]
    assert record.details["skipped"] == ["pgd: the 2 gradients are spent"]
    assert ("moves_skipped" in {flag.kind for flag in record.red_flags}) == found
