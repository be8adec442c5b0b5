"""The models in the package are whole, and as robust as their records say: scored again on unseen draws."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import squint
from squint import zoo
from squint.cli import main
from squint.data import Splits
from squint.data.dataset import to_unit
from squint.evaluation.evidence_files import BYTE_TOLERANCE, load_evidence
from squint.evaluation.scoring import score
from squint.study.folder import read_results
from squint.study.known import outcomes_of
from squint.study.published import kept_images

SOME = 40


def folder(name: str) -> Path:
    return zoo.resolved(name)


def test_a_model_of_cifar10_is_shipped() -> None:
    assert zoo.names() == ["cifar10", "cifar10-small"]


@pytest.mark.parametrize("words", [["verify"], ["attack"], ["info"], ["compare", "cifar10"]])
def test_a_name_that_is_none_is_told_the_names(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "cifar11"]) == 2
    wanted = "cifar11 is not there; allowed: a path that exists, or cifar10, cifar10-small"
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report"], ["publish", "--output", "new"]])
def test_commands_on_runs_say_where_the_card_of_a_shipped_model_is(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([words[0], "cifar10", *words[1:]]) == 2
    assert f"has its card in {folder('cifar10') / 'card.md'})" in capsys.readouterr().err
    assert main([words[0], "cifar11", *words[1:]]) == 2
    assert "card" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", zoo.names())
def test_the_card_is_of_these_weights(name: str) -> None:
    digest = hashlib.sha256(zoo.weights(folder(name)).read_bytes()).hexdigest()
    assert digest in (folder(name) / "card.md").read_text()


@pytest.mark.parametrize("name", zoo.names())
def test_the_evidence_stays_in_the_ball_and_scores_as_recorded(name: str) -> None:
    (file,) = (folder(name) / "evidence").glob("*.npz")
    evidence, kept = load_evidence(file), kept_images(folder(name))
    assert kept is not None
    clean = to_unit(kept.images[evidence.index])
    assert torch.equal(kept.labels[evidence.index], evidence.labels)
    attacked = to_unit(evidence.images)
    assert float((attacked - clean).abs().max()) <= evidence.eps + BYTE_TOLERANCE
    ens = squint.load(name)
    scores = score(
        ens,
        attacked[:SOME],
        evidence.labels[:SOME],
        draws=ens.draws,
        resubmissions=8,
        seed=1234,
        keys=("shipped",),
    )
    # Draws that the record has not seen: a few points of noise on so few images.
    assert abs(scores.accuracy - float(evidence.correct[:SOME].mean())) < 0.05


@pytest.mark.parametrize("name", zoo.names())
def test_each_image_s_outcomes_are_those_of_the_records(name: str) -> None:
    known = outcomes_of(name)
    assert known.shares.keys() >= {"clean", "pgd 5/255", "ladder 5/255, quick", "evidence 5/255"}
    recorded = {
        (record["attack"], record["eps"], record["n"]): record["robust_accuracy"] for record in known.records
    }
    for setting in ("pgd 5/255", "ladder 5/255, quick"):
        row = known.shares[setting]
        attack, eps = setting.partition(",")[0].split()
        assert float(row.mean()) == pytest.approx(recorded[attack, eps, len(row)], abs=1e-9)


@pytest.mark.parametrize("name", zoo.names())
def test_no_record_hides_its_flags(name: str) -> None:
    records = read_results(folder(name))["records"]
    assert records
    for record in records:
        assert record["trusted"] == (not record["red_flags"])


def test_an_attack_needs_nothing_but_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["attack", "cifar10", "--eps", "5/255", "--images", "4", "--resubmissions", "4", "--quiet"]
    assert main([*words, "--attacks", "fgsm"]) == 0
    assert "n=4" in capsys.readouterr().out


def test_what_is_made_of_a_shipped_model_stays_out_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("cifar10", zoo.resolved("cifar10")):
        assert zoo.home(given) == Path("runs/shipped/cifar10")
    (tmp_path / "mine").mkdir()
    assert zoo.home("mine") == Path("mine")


def test_a_plane_of_a_shipped_model_needs_nothing_but_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "profile",
        "cifar10-small",
        "--threats",
        "noise-linf",
        "--eps",
        "5/255",
        "--images",
        "8",
        "--quiet",
    ]
    assert main([*words, "--draws", "2", "--resubmissions", "2"]) == 0
    assert (tmp_path / "runs" / "shipped" / "cifar10-small" / "plane.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_exported_file_is_not_written_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    kept = kept_images(folder("cifar10-small"))
    assert kept is not None
    splits = Splits(kept, kept.subset(torch.arange(0)), kept)
    monkeypatch.setattr("squint.commands.export.data_for", lambda *_: splits)
    assert main(["export", "cifar10-small", "--images", "8", "--force", "--quiet"]) == 0
    assert (tmp_path / "runs" / "shipped" / "cifar10-small" / "stochastic-information-nearest.onnx").is_file()
