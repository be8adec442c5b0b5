from __future__ import annotations

import json
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from squint import Ensemble, attacks
from squint import data as D
from squint._checks import InputError
from squint.evaluation.detection import ADAPTIVE, SCORE_NAMES, DetectionReport, detect
from squint.evaluation.detection.judge import OTHERS, REQUIRED
from squint.evaluation.detection.kept import KeptPoints
from squint.evaluation.detection.records import resubmitted

Trained = tuple[Ensemble, D.Splits]
EPS = "48/255"


def run(trained: Trained, **changes: Any) -> DetectionReport:
    ens, splits = trained
    settings = {
        "eps": EPS,
        "attacks": ["pgd"],
        "steps": 16,
        "step_size": 0.03,
        "eot": 4,
        "check_every": 8,
        "resubmissions": 8,
        "limit": 24,
        "fit_data": splits.train.subset(torch.arange(200)),
        **changes,
    }
    return detect(ens, splits.test, splits.validation, **settings)


@pytest.fixture(scope="session")
def report(trained: Trained) -> DetectionReport:
    noisy = attacks.random_noise(
        trained[1].test.float_images()[:12], eps=0.2, generator=torch.Generator().manual_seed(0)
    )
    return run(
        trained,
        scores=SCORE_NAMES,
        adaptive=["orthogonal"],
        steps=4,
        resubmissions=4,
        limit=12,
        corruptions={"speckle": noisy},
        dataset="digits",
    )


def test_every_score_has_its_figures_without_and_with_an_attack_on_it(report: DetectionReport) -> None:
    assert tuple(record.score for record in report.records) == SCORE_NAMES
    for record in report.records:
        ran = [(f.attack, f.adaptive) for f in record.attacks]
        assert ran == [("pgd", False), ("orthogonal", True), (OTHERS, True)]
        assert record.non_adaptive_auroc is not None
        assert record.adaptive_auroc is not None
        # Twelve images and four steps: chance may favour either, but not by much.
        assert record.adaptive_auroc <= record.non_adaptive_auroc + 0.1
        assert set(record.controls) == {"noise", "speckle", "clean, misclassified"}
        for figures in record.attacks:
            assert 0 <= figures.evasion <= figures.error <= 1
        # No figure lies above that of an attack that was run.
        assert record.accuracy_with_rejection <= record.non_adaptive_accuracy_with_rejection
        assert record.accuracy_with_rejection <= 1 - max(f.evasion for f in record.attacks)
        assert record.ci95[0] <= record.accuracy_with_rejection <= record.ci95[1]
        assert record.calibration == 200


def test_attacks_on_the_detector_find_more_than_others_do(trained: Trained) -> None:
    record = run(trained, steps=16, limit=24).records[0]
    assert [f.attack for f in record.attacks] == ["pgd", *ADAPTIVE]
    plain = next(f for f in record.attacks if f.attack == "pgd")
    assert record.non_adaptive_auroc is not None
    assert record.non_adaptive_auroc > 0.5
    assert max(f.evasion for f in record.attacks if f.adaptive) > plain.evasion
    assert record.accuracy_with_rejection < record.non_adaptive_accuracy_with_rejection


def test_the_non_adaptive_figure_never_stands_alone(report: DetectionReport) -> None:
    for line in str(report).splitlines():
        assert line.index("attacked") < line.index("not attacked")
        assert "UNTRUSTED" in line


def test_patience_is_printed_with_what_it_costs_clean_images(trained: Trained) -> None:
    found = run(trained, adaptive=[], resubmissions=40, limit=4)
    held = found.records[0].persistent["10"]
    assert held is not None
    assert (
        f"up to 10 times until unflagged, wrong {held['success']:.1%}, and clean flagged at least "
        f"once {held['clean_flagged_once']:.1%}" in str(found)
    )
    assert "resubmitted" not in str(run(trained, adaptive=[], resubmissions=39, limit=2))


def test_reports_are_plain_data(report: DetectionReport) -> None:
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert len(plain["records"]) == len(plain["curves"]) == len(SCORE_NAMES)
    drawn = plain["curves"][0]
    assert {"pgd", "orthogonal", "noise"} <= set(drawn["roc"])
    assert len(drawn["roc"]["pgd"]["fpr"]) == len(drawn["roc"]["pgd"]["tpr"])
    assert "clean, correct" in drawn["histograms"]["shares"]
    images = report.adversarial[("entropy", EPS)]
    assert images.shape == (12, 1, 8, 8)


def test_weak_or_missing_attacks_leave_the_figure_untrusted(
    trained: Trained, report: DetectionReport
) -> None:
    kinds = [flag.kind for flag in report.records[0].red_flags]
    assert kinds == ["detector_not_attacked", "detector_attack_budget"]
    assert not report.records[0].trusted
    assert "not run: agreement, selective, lagrangian" in report.records[0].red_flags[0].message
    record = run(trained, adaptive=["agreement"], steps=3, limit=4).records[0]
    assert record.red_flags[1].measured == {"steps": 3, "eot": 4}
    all_of_them = run(trained, steps=8, limit=2).records[0]
    assert [flag.kind for flag in all_of_them.red_flags] == ["detector_attack_budget"]
    assert set(REQUIRED) == set(ADAPTIVE)


def test_gradients_average_whole_deployments(trained: Trained) -> None:
    record = run(trained, draws=3, eot=None, adaptive=["agreement"], steps=3, limit=2).records[0]
    assert record.draws == 3
    assert record.attacks[-1].eot == 18


def test_too_good_a_detector_is_flagged(trained: Trained) -> None:
    record = run(trained, eps="16/255", adaptive=[], dataset="cifar10").records[0]
    assert record.accuracy_with_rejection > 0.7528
    assert record.red_flags[0].kind == "detector_too_good"


def test_equal_seeds_give_equal_reports(trained: Trained) -> None:
    first, second, third = (
        run(trained, adaptive=["orthogonal"], seed=seed, limit=4, steps=4) for seed in (0, 0, 1)
    )
    held = [{**report.records[0].to_json(), "seconds": 0} for report in (first, second, third)]
    assert held[0] == held[1]
    assert held[0] != held[2]


def test_the_ensemble_is_left_as_it_was(trained: Trained) -> None:
    ens, _ = trained
    ens.train()
    before = torch.random.get_rng_state()
    run(trained, limit=2, steps=8)
    assert torch.equal(before, torch.random.get_rng_state())
    assert ens.training
    assert all(parameter.grad is None for parameter in ens.parameters())
    ens.eval()


def test_resubmission_agrees_with_all_orders() -> None:
    """Of R = 8 deployments, all orders of q = 2 submissions are gone through."""
    evading, flagged, clean = 3, 4, 2
    outcomes = ["wrong"] * evading + ["flagged"] * flagged + ["right"]
    orders = list(permutations(outcomes, 2))
    first = [next((o for o in order if o != "flagged"), "flagged") for order in orders]
    pairs = list(combinations([True] * clean + [False] * (8 - clean), 2))
    found = resubmitted(torch.tensor([evading]), torch.tensor([flagged]), torch.tensor([clean]), 8, (1, 2, 3))
    assert found["1"] is not None
    assert found["1"]["success"] == pytest.approx(3 / 8)
    assert found["2"] is not None
    assert found["2"]["success"] == pytest.approx(first.count("wrong") / len(first))
    assert found["2"]["clean_flagged_once"] == pytest.approx(sum(map(any, pairs)) / len(pairs))
    assert found["2"]["clean_flagged_always"] == pytest.approx(sum(map(all, pairs)) / len(pairs))
    assert found["3"] is None


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(trained: Trained, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"adaptive": ["agreement", "orthogonal"], "limit": 4, "steps": 6}
    whole = run(trained, **changes).to_json()

    def stop(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(trained, kept=KeptPoints(tmp_path), progress=stop, **changes)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "model.pgd.48-255.safetensors",
        "model.predictive_information.agreement.48-255.safetensors",
    ]
    (tmp_path / names[0]).write_bytes(b"torn")
    written = (tmp_path / names[1]).stat().st_mtime_ns
    resumed = run(trained, kept=KeptPoints(tmp_path, reuse=True), **changes).to_json()
    assert (tmp_path / names[1]).stat().st_mtime_ns == written
    assert len(list(tmp_path.iterdir())) == 3
    for found in (whole, resumed):
        assert found["records"][0].pop("seconds") > 0
    assert resumed == whole


@pytest.mark.parametrize("changes", [{"steps": 9}, {"seed": 1}, {"limit": 3}, {"false_alarm_rate": 0.1}])
def test_what_other_settings_left_is_not_used(
    trained: Trained, tmp_path: Path, changes: dict[str, Any]
) -> None:
    base: dict[str, Any] = {
        "adaptive": ["agreement"],
        "limit": 4,
        "steps": 6,
        "kept": KeptPoints(tmp_path, True),
    }
    run(trained, **base)
    (path,) = tmp_path.glob("*agreement*")
    before = path.stat().st_mtime_ns
    run(trained, **base)
    assert path.stat().st_mtime_ns == before
    run(trained, **base | changes)
    assert path.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": ()}, "scores is empty"),
        ({"scores": ["margin"]}, "score is 'margin'"),
        ({"adaptive": ["othogonal"]}, "did you mean 'orthogonal'"),
        ({"attacks": ["apgdd"]}, "attacks is 'apgdd'"),
        ({"eps": "1/0"}, "eps is '1/0'"),
        ({"eot": 3}, "eot is 3"),
        ({"resubmissions": 0}, "resubmissions is 0"),
        ({"step_size": 0.0}, "step_size is 0"),
        ({"corruptions": {"fog": torch.rand(3, 1, 8, 8)}}, r"corruptions\['fog'\] has shape \(3, 1, 8, 8\)"),
        ({"false_alarm_rate": 0.001}, "200 calibration examples; .* needs 999"),
    ],
)
def test_bad_input_is_named(trained: Trained, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(trained, **changes)
