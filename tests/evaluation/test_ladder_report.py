"""What the ladder's records say of a model: NaN outputs, too few images, sources, draws, ceilings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint.evaluation import RobustnessReport, evaluate, ladder_report
from squint.evaluation.active import active_tests
from squint.evaluation.active_findings import ActiveTests
from squint.evaluation.budgets import PRESETS, Budget, Move, Rung, tiny
from squint.evaluation.intervals import wilson
from squint.evaluation.preflight import CIFAR_CEILINGS, ceilings_of, preflight
from tests.evaluation.graveyard import nets
from tests.evaluation.ladder_models import small_ensemble
from tests.evaluation.test_preflight import CHEAP, WHITE


class Brittle(nn.Module):
    """An honest network that answers NaN for bright images, or for what is off 8-bit levels."""

    def __init__(self, off_levels: bool) -> None:
        super().__init__()
        self.network, self.off_levels = nets.undefended(), off_levels

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1) > 0.33
        off = ((255 * x - (255 * x).round()).abs() > 0.01).flatten(1).any(1)
        logits = cast(Tensor, self.network(x))
        return logits.masked_fill((off if self.off_levels else bright)[:, None], torch.nan)


def climbed(monkeypatch: pytest.MonkeyPatch, model: Any, count: int, **options: Any) -> RobustnessReport:
    monkeypatch.setitem(PRESETS, "quick", tiny(2))
    monkeypatch.setattr("squint.evaluation.ladder_report.preflight", lambda *_, **__: [])
    return evaluate(model, nets.images(count), 0.03, "quick", **options)


def noisy() -> squint.Ensemble:
    """An untrained network on digits whose draws differ."""
    net = squint.quantize(squint.models.small_cnn(in_channels=1, width=4), 4, 4, 2)
    squint.calibrate(net, nets.images(20)[0])
    return squint.Ensemble([net], 2).eval()


def kinds(report: RobustnessReport) -> list[str]:
    return [flag.kind for flag in report.records[0].red_flags]


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_nan_off_the_levels_is_an_error_and_is_reported(attack: str) -> None:
    report = evaluate(Brittle(True), nets.images(12), 0.01, attack)
    assert report.records[0].clean_accuracy > 0.9
    assert report.records[0].robust_accuracy == 0.0
    finding = report.records[0].red_flags[-1]
    assert finding.kind == "nan_outputs"
    assert "12 of 12 attacked images (the first are images 0, 1, 2, 3, 4)" in finding.message
    assert "nan_outputs" not in kinds(evaluate(nets.undefended(), nets.images(12), 0.01, attack))


def test_the_ladder_counts_and_reports_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    report = climbed(monkeypatch, Brittle(True), 6)
    assert report.records[0].robust_accuracy == 0.0
    assert "nan_outputs" in kinds(report)
    json.dumps(report.records[0].to_json(), allow_nan=False)
    assert "nan_outputs" not in kinds(climbed(monkeypatch, nets.undefended(), 6))


@pytest.mark.parametrize("off_levels", [False, True])
def test_preflight_outlives_nan(off_levels: bool) -> None:
    findings = preflight(Brittle(off_levels), nets.images(20), "8/255", seed=0, attack=WHITE, probes=CHEAP)
    for finding in findings:
        json.dumps(finding.measured, allow_nan=False)
    assert not {"probabilities", "batch_dependence"} & {finding.kind for finding in findings}


def test_few_images_are_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    few, enough = (climbed(monkeypatch, nets.undefended(), count) for count in (99, 100))
    assert "too_few_images" in kinds(few)
    assert "too_few_images" not in kinds(enough)


def test_few_resubmissions_of_noise_are_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    for model, tries, flagged in ((noisy(), 63, True), (noisy(), 64, False), (nets.undefended(), 2, False)):
        found = climbed(monkeypatch, model, 4, resubmissions=tries)
        assert ("too_few_resubmissions" in kinds(found)) == flagged


def test_every_figure_of_a_ladder_has_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    record = climbed(monkeypatch, noisy(), 6, resubmissions=40).records[0]
    details = record.details
    for name, share in {
        "single_draw_accuracy": record.single_draw_accuracy,
        "persistent 10": record.persistent["10"],
        "uint8_accuracy": details["uint8_accuracy"],
        "known_randomness_accuracy": details["known_randomness_accuracy"],
        **{f"{row['draws']} draws": row["accuracy"] for row in details["sweep"]},
    }.items():
        assert share is not None
        assert details["intervals"][name] == pytest.approx(wilson(6 * share, 6))
    assert record.title == "tiny"
    assert replace(record, preset="standard").title == "ladder (standard)"


def test_records_name_sources_skipped_moves_and_the_draws_that_were_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moves = (Move("pgd", 2, 4), Move("mora", 3, 2), Move("square", 50, 8))
    monkeypatch.setattr("squint.evaluation.ladder_report.preflight", lambda *_, **__: [])
    monkeypatch.setitem(PRESETS, "quick", Budget("quick", (Rung("all", moves),), resubmissions=12))
    still = evaluate(nets.undefended(), nets.images(4), "8/255", "quick").records[0]
    assert (still.steps, still.eot) == (3, 1)
    assert still.details["skipped"] == ["mora: the model has no member_logits"]
    assert (still.details["sources"], still.details["budget"]["name"]) == ([], "quick")
    data = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    noisy = evaluate(small_ensemble(2), data, "8/255", "quick", sources={"other": small_ensemble(2)}).records[
        0
    ]
    assert (noisy.steps, noisy.eot) == (3, 4)
    assert noisy.details["sources"] == ["member 0", "member 1", "deterministic twin", "other"]
    assert noisy.details["resubmissions"] == 12, "the budget's own"


def test_ceilings_reach_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def noted(*_: object, **given: Any) -> list[Any]:
        seen.append(given)
        return []

    monkeypatch.setitem(PRESETS, "quick", tiny(1))
    monkeypatch.setattr(ladder_report, "preflight", noted)
    evaluate(nets.undefended(), nets.images(2), "8/255", "quick", ceilings=ceilings_of("cifar10"))
    evaluate(nets.stochastic(), nets.images(2), "8/255", "quick", ceilings=ceilings_of("digits"))
    assert [given["ceilings"] for given in seen] == [CIFAR_CEILINGS, {}]
    assert [len(given["sources"]) for given in seen] == [0, 3], (
        "members and twin, where there is nothing else"
    )


def test_the_gate_looks_at_the_survivors_of_all_images() -> None:
    """The first images are broken: those that survive come after what the gate used to look at."""
    x, y = nets.images(20)
    generator = torch.Generator().manual_seed(0)
    broken = squint.attacks.pgd(nets.undefended(), x, y, eps=nets.EPS, restarts=3, generator=generator)
    found = torch.cat([broken[:10], x[10:]])

    def strong(model: Any, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        return squint.attacks.pgd(model, x, y, eps=eps, generator=generator)

    gains = [
        active_tests(
            nets.undefended(), (x, y), nets.EPS, seed=0, attack=strong, doubled=strong, images=10, planted=10,
            found=points,
        ).convergence_gain
        for points in (found, broken)
    ]  # fmt: skip
    assert gains[0] == pytest.approx(0.5, abs=0.1)
    assert gains[1] == pytest.approx(0.0, abs=0.01)


def test_an_undefended_source_is_the_control() -> None:
    plain = nets.undefended()
    sources = {"noisy": nets.stochastic(), "plain": plain}
    assert ladder_report._undefended(sources) is plain
    assert ladder_report._undefended({"noisy": nets.stochastic()}) is None


def test_a_missing_active_test_makes_the_figure_untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict end to end, with active tests that pass: only what was not run stands in the way."""
    monkeypatch.setitem(PRESETS, "standard", replace(tiny(2), name="standard"))
    monkeypatch.setattr(ladder_report, "preflight", lambda *_, **__: [])
    passed = ActiveTests(10, 10, 10, 4, 0.0, 0.0, True, ())
    monkeypatch.setattr(ladder_report, "active_tests", lambda *_, **__: passed)
    data = nets.images(100)
    alone = evaluate(nets.stochastic(), data, 0.03, "standard")
    assert kinds(alone) == ["no_noise_control"]
    assert not alone.records[0].trusted
    whole = evaluate(nets.stochastic(), data, 0.03, "standard", sources={"plain": nets.undefended()})
    assert kinds(whole) == []
    assert whole.records[0].trusted
