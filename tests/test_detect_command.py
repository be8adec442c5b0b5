"""`squint detect` through `main`: its controls, what it keeps, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import squint
import squint.study.run
from squint.cli import main
from squint.data.corruptions import CORRUPTIONS
from squint.evaluation.detection import SCORE_NAMES, SCORES
from squint.evaluation.detection.judge import OTHERS
from squint.study.run import run_study
from tests.study.tiny import tiny

WORDS = ("--images", "4", "--steps", "3", "--resubmissions", "4", "--adaptive", "agreement", "--quiet")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was looked at for detection once."""
    folder = tmp_path_factory.mktemp("detect") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(squint.study.run, "write_report", lambda _: None)
        run_study(tiny(), folder)
    assert main(["detect", str(folder), *WORDS]) == 0
    return folder


def records(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "detection.json").read_text())["records"]
    return found


def test_controls_are_noise_doubt_and_every_corruption(run: Path) -> None:
    (record,) = records(run)
    expected = {"noise", "clean, misclassified", *(f"{kind} 3" for kind in CORRUPTIONS)}
    assert set(record["controls"]) == expected
    drawn = json.loads((run / "detection.json").read_text())["curves"][0]["histograms"]["shares"]
    assert sum(drawn["fog 3"]) == pytest.approx(1)


def test_the_detector_is_kept_beside_its_ensemble(run: Path) -> None:
    ens = squint.load(run / "weights" / "noisy.safetensors")
    path = run / "detectors" / "noisy.predictive_information.safetensors"
    detector = squint.Detector.load(path, ens)
    assert detector.threshold == records(run)[0]["threshold"]
    assert detector.flag(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))).shape == (3,)


def test_resuming_runs_no_attack_again_and_keeps_other_records(run: Path) -> None:
    first = records(run)
    kept = {path: path.stat().st_mtime_ns for path in (run / "detection").iterdir()}
    assert len(kept) == 3
    assert main(["detect", str(run), *WORDS, "--resume", "--eps", "24/255", "8/255"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    second = records(run)
    assert [record["eps"] for record in second] == ["24/255", "8/255"]
    assert second[0] == first[0]
    assert main(["detect", str(run), *WORDS, "--corruptions", "fog", "--strength", "5"]) == 0
    (third,) = records(run)
    assert set(third["controls"]) == {"noise", "clean, misclassified", "fog 5"}
    assert all(path.stat().st_mtime_ns > before for path, before in kept.items())


def test_another_folder_and_budget(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    folder = tmp_path / "not" / "there"
    budget = ("--eot", "8", "--step-size", "1/255", "--calibration", "40", "--corruptions", "fog")
    assert main(["detect", str(run), *WORDS, *budget, "--scores", "all", "--output", str(folder)]) == 0
    found = records(folder)
    assert tuple(record["score"] for record in found) == SCORE_NAMES
    for record in found:
        assert record["budget"] == {"steps": 3, "step_size": 1 / 255, "eot": 8, "check_every": 3}
        assert record["attacks"][-1]["attack"] == OTHERS
        learned = record["score"] not in SCORES
        assert record["calibration"] == (20 if learned else 40)
    assert len(list((folder / "detectors").iterdir())) == len(SCORE_NAMES)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_data_are_read_from_where_the_command_says(run: Path, tmp_path: Path) -> None:
    asked: list[str | None] = []

    def load(_: str, data_dir: str | None, **__: object) -> None:
        asked.append(data_dir)
        raise squint.InputError("not read")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("squint.commands.targets.D.load", load)
        assert main(["detect", str(run), *WORDS, "--data-dir", str(tmp_path)]) == 2
    assert asked == [str(tmp_path)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--systems", "plain"), "system is 'plain'; allowed: noisy"),
        (("--corruptions", "fogg"), "did you mean 'fog'"),
        (("--false-alarm-rate", "0.001"), "needs 999 or more"),
        (("--calibration", "18"), "18 calibration examples; a false-alarm rate of 0.05 needs 19 or more"),
        (("--calibration", "0"), "calibration is 0; allowed: a whole number in [1, "),
        (("--calibration", "100000"), "calibration is 100000"),
        (("--scores", "all", "entropy"), "score is 'all'"),
        (("--step-size", "1/0"), "step_size is '1/0'"),
        (("--images", "100000"), "images is 100000; allowed: a whole number in [1, "),
    ],
)
def test_bad_options_are_named(
    run: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["detect", str(run), *WORDS, *words]) == 2
    assert message in capsys.readouterr().err


def test_what_can_be_refused_is_refused_before_the_data_are_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("read the data")

    monkeypatch.setattr("squint.commands.detect.data_for", read)
    capsys.readouterr()
    folder = tmp_path / "not" / "there"
    for words, message in (
        (("--resubmissions", "0"), "resubmissions is 0"),
        (("--draws", "0"), "draws is 0"),
        (("--strength", "6"), "strength is 6"),
        (("--eot", "0"), "eot is 0; allowed for noisy: a multiple of its draws"),
        (("--eot", "5"), "eot is 5; allowed for noisy: a multiple of its draws"),
        (("--steps", "2"), "steps is 2; allowed: a whole number in [3, "),
        (("--steps", "7", "--adaptive", "lagrangian"), "steps is 7; allowed: a whole number in [8, "),
        (("--false-alarm-rate", "1"), "false_alarm_rate is 1.0; allowed: a number in (0, 1)"),
        (("--eps", "5/0"), "eps is '5/0'"),
        (("--step-size", "0"), "step_size is 0"),
        (("--adaptive", "none"), "adaptive is 'none'"),
        (("--scores", "entrop"), "score is 'entrop'"),
    ):
        assert main(["detect", str(run), "--output", str(folder), *WORDS, *words]) == 2
        assert message in capsys.readouterr().err
        # Nothing is left of the folder that was made to be held.
        assert not folder.parent.exists()


def test_a_file_of_something_else_is_not_continued(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "detection.json"
    content = path.read_text()
    other = json.loads(content)
    other["curves"][0]["eps"] = ["24/255"]
    both: tuple[Any, ...] = ([], other)
    for damaged in both:
        path.write_text(json.dumps(damaged))
        assert main(["detect", str(run), *WORDS, "--resume"]) == 2
        assert "is no detection.json" in capsys.readouterr().err
    path.write_text(content)
