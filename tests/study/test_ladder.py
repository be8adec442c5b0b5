"""`squint attack --attacks quick`: the ladder on weights that are there, with a budget of a few steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import squint
import squint.evaluation.ladder_report
from squint._checks import InputError
from squint.cli import main
from squint.evaluation.budgets import PRESETS, tiny
from squint.evaluation.evidence_files import load_evidence
from squint.study import run_study
from squint.study.attack import AttackOptions, attack_weights
from squint.study.keeping import held
from squint.study.progress import Silence
from tests.study.tiny import tiny as study

OPTIONS = AttackOptions(attacks=("quick",), eps=("32/255",), images=4, resubmissions=4)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the quick budget one of a few steps, without its preflight: neither is what is tested here."""
    monkeypatch.setitem(PRESETS, "quick", tiny(2))
    monkeypatch.setattr(squint.evaluation.ladder_report, "preflight", lambda *_, **__: [])
    return


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    data = squint.data.load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = squint.quantize(squint.models.small_cnn(in_channels=1, width=4), 4, 4, 1)
    squint.calibrate(net, data.train.images[:64].float() / 255)
    file = tmp_path / "noisy.safetensors"
    squint.save(squint.Ensemble([net], draws=2), file)
    return file


def with_folder(folder: Path | None, **changes: object) -> AttackOptions:
    return AttackOptions(**{**vars(OPTIONS), "folder": folder, **changes})


def test_the_ladder_leaves_outcomes_and_evidence_that_verify_and_break_take(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    (report,) = attack_weights(weights, with_folder(folder), Silence())
    (record,) = report.records
    assert (record.attack, record.eps, record.n, record.trusted) == ("ladder", "32/255", 4, False)
    file = folder / "evidence" / "noisy.npz"
    evidence = load_evidence(file)
    assert evidence.correct.mean() == pytest.approx(record.details["uint8_accuracy"])
    # Untrained, the network is wrong about most images: a few resubmissions agree with others.
    words = ["--model", str(weights), "--resubmissions", "16", "--seed", "1", "--quiet"]
    assert main(["verify", str(file), *words]) == 0
    taken = ["break", str(weights), str(file), "--eps", "32/255", "--record", str(file), "--quiet"]
    assert main(taken) == 0
    assert "the record stands" in capsys.readouterr().out


class Moves:
    """Keeps how far each bar went, and the notes behind it."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int, list[tuple[int, str]]]] = []

    def start(self, title: str, total: int) -> None:
        self.bars.append((title, total, []))

    def move(self, done: int, note: str = "") -> None:
        self.bars[-1][2].append((done, note))


def test_a_source_that_is_trained_for_the_ladder_has_a_bar_of_its_own(tmp_path: Path) -> None:
    recipe, bar = study(attack={"ladder": "quick", "images": 4}), Moves()
    run_study(recipe, tmp_path / "run", only=["noisy"], bar=bar)
    titles = [title for title, _, _ in bar.bars]
    assert titles == ["train noisy", "attack noisy", "train plain", "tiny on noisy"]
    for title, total, moves in bar.bars:
        assert moves[-1][0] == total, title
        assert any("left" in note for _, note in moves) == (title == "tiny on noisy")


def test_a_stopped_ladder_goes_on_and_gives_the_same_record(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    first = attack_weights(weights, with_folder(folder), Silence())[0].records[0]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished batch was attacked again")

    monkeypatch.setattr("squint.evaluation.ladder_run.climb", never)
    again = attack_weights(weights, with_folder(folder), Silence())[0].records[0]
    assert again == first
    with pytest.raises(InputError, match="another configuration, which differs in seed"):
        attack_weights(weights, with_folder(folder, seed=1), Silence())


def test_evidence_is_replaced_by_stronger_evidence_only(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    attack_weights(weights, with_folder(folder), Silence())
    file = folder / "evidence" / "noisy.npz"
    before = file.read_bytes()
    # Another name of the budget's folder, fewer images: weaker evidence.
    (folder / "ladder").rename(folder / "older")
    attack_weights(weights, with_folder(folder, images=2), Silence())
    assert file.read_bytes() == before
    with pytest.raises(InputError, match="is evidence at eps 32/255"):
        attack_weights(weights, with_folder(folder, eps=("16/255",)), Silence())


def test_a_folder_that_is_no_run_is_held_by_one_job(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with held(folder, make=True), pytest.raises(InputError, match="in use by another squint process"):
        attack_weights(weights, with_folder(folder), Silence())


def test_other_attacks_go_with_the_ladder(weights: Path) -> None:
    both = with_folder(None, attacks=("fgsm", "quick"))
    records = [record for report in attack_weights(weights, both, Silence()) for record in report.records]
    assert [record.attack for record in records] == ["ladder", "fgsm"]
    with pytest.raises(InputError, match=r"attacks is 'quik'; allowed: .*did you mean 'quick'"):
        attack_weights(weights, with_folder(None, attacks=("quik",)), Silence())


def test_progress_names_rungs_and_survivors_and_the_report_tells_margins(weights: Path) -> None:
    notes: list[str] = []

    class Noted(Silence):
        def move(self, done: int, note: str = "") -> None:
            notes.append(note)
            assert 0 <= done <= 4

    (report,) = attack_weights(weights, with_folder(None), Noted())
    rung = tiny(2).rungs[0].name
    assert any(re.fullmatch(rf"{rung}, [0-4] left", note) for note in notes)
    assert notes[-1] == ""
    near = report.records[0].details["margins"]["below_0.1"]
    assert f"{near:.1%} have a margin within 0.1; in 8-bit images" in str(report)
