"""Several scores in one evaluation: what is shared between them, and points that attack each other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from squint import Ensemble
from squint import data as D
from squint._checks import InputError
from squint.attacks.detector import agreement, agreements
from squint.evaluation.detection import SCORE_NAMES, SCORES, Detector, detect
from squint.evaluation.detection import evaluation as evaluation_module
from squint.evaluation.detection.judge import OTHERS, Deployed, Points, Trial, Tried, pooled, worst_of
from squint.evaluation.detection.kept import KeptPoints
from squint.evaluation.detection.outputs import Observed

Trained = tuple[Ensemble, D.Splits]
Setting = tuple[Ensemble, Tensor, Tensor]
EPS = 48 / 255


def run(trained: Trained, scores: tuple[str, ...], **changes: Any) -> dict[str, dict[str, Any]]:
    ens, splits = trained
    settings: dict[str, Any] = {
        "attacks": ["pgd"],
        "adaptive": ["agreement", "selective"],
        "steps": 6,
        "eot": 4,
        "check_every": 3,
        "resubmissions": 4,
        "limit": 6,
        **changes,
    }
    found = detect(ens, splits.test, splits.validation, EPS, scores, **settings)
    return {record["score"]: {**record, "seconds": 0} for record in found.to_json()["records"]}


@pytest.mark.parametrize("score", ["entropy", "neighbours", "combination"])
def test_fits_that_share_what_was_seen_are_those_that_do_not(score: str, random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    observed = Observed(3, 2)
    for other in SCORE_NAMES:
        Detector.fit(ens, (x[:120], y[:120]), 0.1, score=other, draws=2, seed=3, observed=observed)
    shared = Detector.fit(ens, (x[:120], y[:120]), 0.1, score=score, draws=2, seed=3, observed=observed)
    alone = Detector.fit(ens, (x[:120], y[:120]), 0.1, score=score, draws=2, seed=3)
    assert torch.equal(shared.calibration, alone.calibration)


def test_scores_of_one_kind_are_calibrated_by_one_pass(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    asked: list[int] = []
    ens.members[0].register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    observed = Observed(0, 2)
    for score in SCORES:
        Detector.fit(ens, (x[:60], y[:60]), 0.1, score=score, draws=2, observed=observed)
    # One image alone tells each fit how many classes there are.
    assert sum(asked) - len(SCORES) == 60 * 2


def test_one_walk_finds_for_each_detector_what_a_walk_of_its_own_does(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    every = [
        Detector.fit(ens, (x[100:200], y[100:200]), 0.1, score=score)
        for score in ("entropy", "neighbours", "vote_disagreement")
    ]
    settings: dict[str, Any] = {"eps": 0.2, "steps": 12, "eot": 3, "check_every": 2}
    together = agreements(
        every[1].view,
        x[:5],
        y[:5],
        detectors=[detector.deployed for detector in every],
        generator=torch.Generator().manual_seed(0),
        **settings,
    )
    for detector, found in zip(every, together, strict=True):
        alone = agreement(
            detector.view,
            x[:5],
            y[:5],
            detector=detector.deployed,
            generator=torch.Generator().manual_seed(0),
            **settings,
        )
        assert torch.equal(found, alone)
    assert not torch.equal(together[0], together[1])


def test_figures_of_a_score_do_not_depend_on_the_others(trained: Trained) -> None:
    alone = run(trained, ("entropy",))["entropy"]
    beside = run(trained, ("vote_disagreement", "entropy", "neighbours"))["entropy"]
    names = [figures["attack"] for figures in beside["attacks"]]
    assert names == ["pgd", "agreement", "selective", OTHERS]
    assert beside["attacks"][:-1] == alone["attacks"]
    assert beside["controls"] == alone["controls"]
    assert beside["budget"] == {"steps": 6, "step_size": EPS / 30, "eot": 4, "check_every": 3}


def test_a_further_score_runs_only_its_own_attacks(trained: Trained, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"kept": KeptPoints(tmp_path, reuse=True)}
    run(trained, ("entropy",), **changes)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    asked: list[int] = []

    def counted(*arguments: Any, detectors: Any, **named: Any) -> list[Tensor]:
        asked.append(len(detectors))
        return agreements(*arguments, detectors=detectors, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_module, "agreements", counted)
        resumed = run(trained, ("entropy", "neighbours"), **changes)
    assert asked == [1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.iterdir())) == len(before) + 2
    assert resumed == run(trained, ("entropy", "neighbours"))


def made(
    detector: Detector, evading: list[int], scored: list[int], mark: float, deployments: int = 4
) -> Tried:
    """Return points of value `mark` that evade in so many deployments of each image."""

    def outcome(counts: list[int]) -> Deployed:
        wrong = torch.arange(deployments) < torch.tensor(counts).unsqueeze(1)
        low = torch.full(wrong.shape, detector.threshold - 1, dtype=torch.float64)
        return Deployed(wrong, {detector.score_name: low})

    images = torch.full((len(evading), 1, 2, 2), mark)
    return Tried(Points(images, True, 10, 4), outcome(evading), outcome(scored))


def test_the_worst_is_chosen_on_other_deployments_than_score_it(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    detector = Detector.fit(ens, (x[:60], y[:60]), 0.1)
    first = made(detector, evading=[4, 0, 2], scored=[1, 4, 2], mark=0.0)
    second = made(detector, evading=[3, 1, 2], scored=[4, 0, 2], mark=1.0)
    worst = pooled([first, second], detector)
    assert worst.points.images[:, 0, 0, 0].tolist() == [0.0, 1.0, 0.0]
    assert worst.scored.evades(detector).sum(1).tolist() == [1, 0, 2]
    assert worst.chosen.evades(detector).sum(1).tolist() == [4, 1, 2]


def test_no_choice_among_attacks_leaves_more_than_one_of_them_alone(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    detector = Detector.fit(ens, (x[:60], y[:60]), 0.1)
    lucky = made(detector, evading=[4, 4, 2], scored=[0, 1, 2], mark=0.0)
    steady = made(detector, evading=[3, 3, 1], scored=[3, 3, 1], mark=1.0)
    assert pooled([lucky, steady], detector).scored.evades(detector).sum() == 3
    assert worst_of([lucky, steady], detector).scored.evades(detector).sum() == 7
    # Where both find something the other does not, the choice for each image is worse than either.
    left = made(detector, evading=[4, 0, 0], scored=[4, 0, 0], mark=0.0)
    right = made(detector, evading=[0, 4, 4], scored=[0, 3, 4], mark=1.0)
    assert worst_of([left, right], detector).scored.evades(detector).sum(1).tolist() == [4, 3, 4]


def test_a_start_follows_the_detector_only_where_one_is_named(random_ensemble: Setting) -> None:
    ens, x, y = random_ensemble
    detector = Detector.fit(ens, (x[:60], y[:60]), 0.1)
    study = Trial({detector.score_name: detector}, x[:1], y[:1], 3, 4, 0)
    quiet = made(detector, evading=[2], scored=[0], mark=0.0)
    loud = made(detector, evading=[3], scored=[0], mark=1.0)
    high = torch.full((1, 4), detector.threshold + 1, dtype=torch.float64)
    loud = Tried(loud.points, Deployed(loud.chosen.wrong, {detector.score_name: high}), loud.scored)
    assert float(study.worst([quiet, loud], detector).mean()) == 0.0
    assert float(study.worst([quiet, loud]).mean()) == 1.0


def test_scores_that_are_nan_on_attacked_images_are_an_error(trained: Trained) -> None:
    def broken(outputs: Tensor) -> Tensor:
        return torch.full(outputs.shape[2:3], torch.nan, dtype=torch.float64)

    ens, splits = trained
    detector = Detector.fit(ens, splits.validation, score="entropy")
    study = Trial({"entropy": detector}, *D.collect(splits.test, 2), 2, 4, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCORES, "entropy", broken)
        with pytest.raises(
            InputError, match=r"'entropy' is NaN or infinite for 8 of 8 deployments \(score\)"
        ):
            study.deploy(study.x, "score")
