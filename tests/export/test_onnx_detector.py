"""The detector of an exported graph: its score, its calibration, and what it refuses."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import squint
from squint import InputError
from squint.information import predictive_information

from .onnx_models import digits, pair, trained

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from squint.export.onnx import OnnxModel, export_onnx, predict  # noqa: E402


def test_the_score_is_the_predictive_information(tmp_path: Path) -> None:
    x = digits()[2]
    ens = copy.deepcopy(pair())
    squint.set_rounding(ens, "nearest")
    model = OnnxModel(export_onnx(ens, tmp_path / "m.onnx", detector_images=x[:40], saturating=False).path)
    log_probability, score = model.run(x[:32])
    assert score.shape == (32,)
    with torch.no_grad():
        expected = predictive_information(ens.member_logits(x[:32], 1).double()).total
    # The graph's members differ from ours by 8-bit codes in front of the mean.
    assert float((torch.from_numpy(score) - expected).abs().max()) < 0.05
    assert log_probability.shape == (32, 10)


def test_the_threshold_is_the_conformal_one_of_what_the_runtime_computes(tmp_path: Path) -> None:
    x = digits()[2]
    report = export_onnx(
        pair(), tmp_path / "m.onnx", images=x[:64], detector_images=x[100:159], false_alarm_rate=0.05
    )
    detector, model = report.detector, OnnxModel(report.path)
    assert detector is not None
    # 60 times 0.05 is 3: the third largest of 59 scores.
    assert detector.threshold == pytest.approx(float(np.sort(model.run(x[100:159])[1])[-3]), abs=1e-6)
    assert detector.calibration == 59
    flags = [prediction.flagged for prediction in predict(model, x[:64])]
    assert detector.measured == np.mean(np.array(flags, dtype=float))
    assert model.card["detector"] == vars(detector)


def test_false_alarms_of_a_stochastic_graph_stay_at_the_stated_rate(tmp_path: Path) -> None:
    # One shuffled set: calibration and fresh images are exchangeable.
    train, _, test, _ = digits()
    x = torch.cat([train, test])
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    path = export_onnx(
        pair(), tmp_path / "m.onnx", "sample", detector_images=x[:399], false_alarm_rate=0.1
    ).path
    fresh = x[399:1199]
    rate = np.mean([bool(prediction.flagged) for prediction in predict(path, fresh)])
    # The rate is Beta(40, 360) distributed over calibrations, and binomial on 800 images given that.
    error = math.sqrt(0.1 * 0.9 / 400 + 0.1 * 0.9 / 800)
    assert abs(rate - 0.1) < 4 * error


def test_what_gives_no_detector_is_refused_before_any_work(tmp_path: Path) -> None:
    x = digits()[2]
    path = tmp_path / "m.onnx"
    alone = trained((4,))
    for ens, given, rate, message in (
        (alone, x[:40], 0.05, "one network without noise has nothing to disagree with"),
        (pair(), x[:18], 0.05, "detector_images has 18; a false-alarm rate of 0.05 needs 19 or more"),
        (pair(), x[:40], 1.5, r"false_alarm_rate is 1.5; allowed: a number in"),
        (pair(), x[:40, :, :4], 0.05, r"detector_images are of shape \(1, 4, 8\), images of \(1, 8, 8\)"),
    ):
        with pytest.raises(InputError, match=message):
            export_onnx(ens, path, images=x[:32], detector_images=given, false_alarm_rate=rate)
    assert not path.exists()
    assert export_onnx(alone, path, "sample", detector_images=x[:40]).detector is not None


def test_a_card_with_a_detector_that_the_graph_does_not_have_is_refused(tmp_path: Path) -> None:
    path, x = tmp_path / "m.onnx", digits()[2][:4]
    model = onnx.load(export_onnx(pair(), path).path)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "detector")
    for value, message in (
        ('{"threshold": 0.1}', "returns no score for each image"),
        ('{"threshold": "high"}', "card is damaged"),
        ("{}", "card is damaged"),
    ):
        entry.value = value
        onnx.save(model, path)
        with pytest.raises(InputError, match=message):
            predict(path, x)
