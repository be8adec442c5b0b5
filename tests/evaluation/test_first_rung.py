"""The first rung beside plain PGD: eight points between them are suspect, for honest networks lose fewer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import squint
from squint.attacks.gradients import AnyModel
from squint.evaluation import ladder_report
from squint.evaluation.budgets import QUICK, Budget, Move, Rung
from squint.evaluation.first_rung import FirstRung, early_fall, first_rung, is_compared
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.records import Record
from squint.evaluation.scoring import Scores
from tests.evaluation.graveyard import nets
from tests.evaluation.ladder_models import NoisyPair, pair_data

ROOT = Path(__file__).parents[2]
RUNG = QUICK.first(1)


def outcome(errors: list[int]) -> Scores:
    return Scores(torch.tensor(errors), 100, torch.zeros(len(errors)), 1)


def test_eight_points_are_allowed() -> None:
    plain = outcome([50] * 10)
    assert early_fall(None) == []
    assert early_fall(FirstRung(outcome([58] * 10), plain)) == []
    assert early_fall(FirstRung(outcome([20] * 10), plain)) == [], "weaker than plain PGD is no fall"
    (finding,) = early_fall(FirstRung(outcome([59] * 10), plain))
    assert finding.kind == "masking_suspected"
    assert finding.measured["fall"] == pytest.approx(0.09)
    # Twelve points with a standard error of three are not over eight and two errors, eighteen are.
    spread = 30 / math.sqrt(10)
    for mean, found in ((12, False), (18, True)):
        errors = [round(50 + mean + sign * spread) for sign in [-1, 1] * 5]
        measured = FirstRung(outcome(errors), plain)
        assert measured.standard_error == pytest.approx(0.03, abs=0.002)
        assert (early_fall(measured) != []) == found
    assert early_fall(FirstRung(outcome([90]), outcome([10]))) == [], "of one image nothing can be said"


def committed() -> nn.Module:
    return squint.load(ROOT / "tests" / "attacks" / "weights" / "stochastic.safetensors").eval()


@pytest.mark.parametrize(
    ("build", "eps", "masked"),
    [
        (nets.binarized, nets.EPS, True),
        (lambda: nets.Scaled(nets.undefended(), 1e5).eval(), 0.1, True),
        (nets.undefended, 0.06, False),
        (nets.stochastic, 0.1, False),
        (committed, 32 / 255, False),
    ],
    ids=["binarized", "saturated logits", "undefended", "stochastic", "1-bit input"],
)
def test_networks_that_hide_from_plain_pgd_are_told_from_those_that_do_not(
    build: Callable[[], AnyModel], eps: float, masked: bool
) -> None:
    """The whole first rung of the ladder, through a ladder of that rung alone."""
    result = run_ladder(build(), nets.images(40), eps, RUNG, counts=(1,), known=False, resubmissions=16)
    assert result.first_rung is not None
    assert 0.05 < result.first_rung.plain.accuracy < 0.98, "there is something left to lose"
    assert (early_fall(result.first_rung) != []) == masked
    assert result.summary()["plain_pgd_accuracy"] == result.first_rung.plain.accuracy


def test_both_are_scored_alike_and_plain_pgd_finds_the_worst_point_of_a_linear_model() -> None:
    model = NoisyPair(members=1)
    x, y = pair_data(model, 30, margin=0.5)
    worst = model.worst(x, y, 0.05)
    found = first_rung(model, x, y, 0.05, worst, seed=0, keys=("a",), draws=4)
    assert found.plain.accuracy == pytest.approx(found.targeted.accuracy, abs=0.01)
    still = first_rung(model, x, y, 0.05, x, seed=0, keys=("a",), draws=4)
    assert still.targeted.accuracy > found.targeted.accuracy + 0.1
    again = first_rung(model, x, y, 0.05, worst, seed=0, keys=("a",), draws=4, chunk=3)
    assert again.plain.accuracy == pytest.approx(found.plain.accuracy, abs=0.01)


def test_the_record_carries_flag_and_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_report, "preflight", lambda *_, **__: [])
    short = Budget("first look", (Rung("targeted", (Move("targeted", 10, 4, "random", refine=20),)),))

    def record(model: AnyModel, data: tuple[Tensor, Tensor]) -> Record:
        report = ladder_report.ladder_report(
            model, data, [nets.EPS], short, system="m", draws=1, resubmissions=4, seed=0, limit=None,
            batch_size=10, tier="A", sources=None, folder=None, progress=None,
        )  # fmt: skip
        return report.records[0]

    masked, honest = (record(build(), nets.images(20)) for build in (nets.binarized, nets.undefended))
    assert "masking_suspected" in {flag.kind for flag in masked.red_flags}
    assert "masking_suspected" not in {flag.kind for flag in honest.red_flags}
    assert masked.details["plain_pgd_accuracy"] > masked.details["first_rung_accuracy"] + 0.08


def test_another_first_rung_is_not_compared() -> None:
    other = Budget("other", (Rung("pgd", (Move("pgd", 2, 1),)),))
    assert is_compared(RUNG)
    assert not is_compared(other)
    result = run_ladder(nets.undefended(), nets.images(4), 0.05, other, counts=(1,), known=False)
    assert result.first_rung is None
    assert "plain_pgd_accuracy" not in result.summary()
