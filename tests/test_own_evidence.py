"""What a run keeps as its own evidence: of its own images and draws, its members' too, and nothing else's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import squint
import squint.evaluation.ladder_report
import squint.study.run
from squint import data as D
from squint._checks import InputError
from squint.evaluation.budgets import PRESETS, tiny
from squint.evaluation.evidence_files import load_evidence
from squint.study.attack import AttackOptions, attack_weights
from squint.study.progress import Silence
from squint.study.published import publish
from squint.study.run import run_study
from tests.study.collections import hypothesis
from tests.study.finished import N, done, finished, refused, with_evidence
from tests.study.tiny import tiny as recipe

QUICK = AttackOptions(attacks=("quick",), images=6, resubmissions=16, systems=("noisy",))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the quick budget one of a few steps, without its preflight: neither is what is tested here."""
    monkeypatch.setitem(PRESETS, "quick", tiny(2))
    monkeypatch.setattr(squint.evaluation.ladder_report, "preflight", lambda *_, **__: [])
    return


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("own") / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of other images that the run's networks take."""
    folder = tmp_path_factory.mktemp("foreign")
    generator = np.random.default_rng(0)
    for name in range(10):
        for part in ("train", "test"):
            place = folder / part / str(name)
            place.mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return f"folder:{folder}"


def changed(what: str, foreign: str) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {"images": {"dataset": foreign}, "draws": {"draws": 1}}
    return options[what]


def test_evidence_on_its_own_images_is_the_run_s(run: Path) -> None:
    attack_weights(run, QUICK, Silence())
    held = load_evidence(run / "evidence" / "noisy.npz")
    assert (len(held.index), held.draws) == (6, 2)


@pytest.mark.parametrize("change", ["images", "draws"])
def test_what_is_not_of_the_run_stays_out_of_it(run: Path, foreign: str, change: str, tmp_path: Path) -> None:
    options = changed(change, foreign)
    before = sorted(path for path in run.rglob("*"))
    attack_weights(run, replace(QUICK, **options), Silence())
    assert sorted(path for path in run.rglob("*")) == before
    kept = replace(QUICK, **options, folder=tmp_path / "kept")
    attack_weights(run, kept, Silence())
    assert load_evidence(tmp_path / "kept" / "evidence" / "noisy.npz").draws == (
        1 if change == "draws" else 2
    )


@pytest.mark.parametrize("change", ["images", "draws"])
def test_evidence_of_two_kinds_is_not_put_together(run: Path, foreign: str, change: str) -> None:
    attack_weights(run, QUICK, Silence())
    file = run / "evidence" / "noisy.npz"
    before = file.read_bytes()
    options, words = (
        changed(change, foreign),
        {
            "images": "these are other images; name another --folder",
            "draws": "is evidence of 2 draws a prediction; allowed: as many, or another --folder for 1",
        }[change],
    )
    with pytest.raises(InputError, match=words):
        attack_weights(run, replace(QUICK, **options, folder=run), Silence())
    assert file.read_bytes() == before


def test_members_evidence_is_verified_as_theirs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack_weights(run, replace(QUICK, systems=(), members=True), Silence())
    lines = done(capsys, "verify", run, "--seed", 3, "--resubmissions", 16).splitlines()
    assert sorted(line.split(" at eps")[0] for line in lines) == [
        "noisy",
        "noisy-member-1",
        "noisy-member-2",
        "plain",
    ]
    file = run / "evidence" / "noisy-member-2.npz"
    words = ("--seed", 3, "--resubmissions", 16)
    alone = done(capsys, "verify", file, *words)
    assert alone.startswith("noisy-member-2 at eps")
    assert alone.strip() in lines
    moved = tmp_path / "elsewhere.npz"
    moved.write_bytes(file.read_bytes())
    weights = run / "weights" / "noisy.safetensors"
    named = done(capsys, "verify", moved, "--model", weights, "--dataset", "digits", *words)
    assert named == alone
    assert "another number of draws" in done(capsys, "verify", run / "evidence" / "noisy.npz", "--draws", 3)


def test_a_run_on_validation_images_stays_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(squint.study.run, "write_report", lambda _: None)
    attack = {"images": 8, "resubmissions": 16, "split": "validation", "ladder": "quick"}
    run_study(recipe(attack=attack), tmp_path / "run")
    labels = load_evidence(tmp_path / "run" / "evidence" / "noisy.npz").labels
    splits = D.load("digits")
    assert labels.tolist() == splits.validation.labels[:8].tolist() != splits.test.labels[:8].tolist()
    assert "noisy at eps 24/255" in done(capsys, "verify", tmp_path / "run", "--resubmissions", 16)
    attack_weights(tmp_path / "run", QUICK, Silence())
    line = refused(capsys, "publish", tmp_path / "run", "--output", tmp_path / "mine")
    assert "attacks validation images; allowed: a run on test images" in line
    assert not (tmp_path / "mine").exists()


def test_results_that_say_nothing_of_a_system_are_not_published(trained: Path, tmp_path: Path) -> None:
    run = with_evidence(Path(shutil.copytree(trained, tmp_path / "run")))
    file = run / "results.json"
    whole = json.loads(file.read_text())
    for broken, words in (
        ({"systems": [s for s in whole["systems"] if s["name"] != "noisy"]}, "says nothing of noisy yet"),
        ({"systems": None}, "says nothing of noisy yet"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"environments": [3]}, r"environments\[0\] is int"),
        ({"records": [3]}, r"records\[0\] is int"),
    ):
        file.write_text(json.dumps(whole | broken))
        with pytest.raises(InputError, match=words):
            publish(run, "noisy", tmp_path / "mine")
        assert not (tmp_path / "mine").exists()
    assert len(load_evidence(run / "evidence" / "noisy.npz").labels) == N


def test_a_mistyped_profile_leaves_what_was_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = run / "plane" / "noisy" / "part.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    for words in (
        ("--threats", "linf-pdg"),
        ("--draws", 0),
        ("--resubmissions", 0),
        ("--eps", "0"),
        ("--eps", "x"),
        ("--estimators", "x"),
        ("--strengths", 6),
    ):
        refused(capsys, "profile", run, *words)
        assert kept.is_file(), words


def test_budgets_of_one_name_are_not_compared(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ordinary, equal = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("a", "b"))
    results = json.loads((equal / "results.json").read_text())
    for record in results["records"]:
        record["preset"] = "equal passes"
    (equal / "results.json").write_text(json.dumps(results))
    assert "pgd 24/255" in done(capsys, "compare", ordinary, ordinary)
    assert "pgd" not in done(capsys, "compare", ordinary, equal)
    assert "pgd 24/255, equal passes" in done(capsys, "compare", equal, equal)
    (equal / "results.json").write_text("{}")
    assert "format_version" in refused(capsys, "compare", ordinary, equal)
    (ordinary / "run.json").write_text('{"data": 3}')
    assert "run.json is damaged" in refused(capsys, "compare", ordinary, ordinary)


def test_a_hypothesis_s_parts_are_verified_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(squint.study.run, "write_report", lambda _: None)
    run_study(hypothesis(attack={"ladder": "quick", "resubmissions": 16}), tmp_path / "run")
    lines = done(capsys, "verify", tmp_path / "run", "--resubmissions", 16).splitlines()
    found = {line.split(" at eps")[0] for line in lines}
    assert {"alike", "bits", "member-1", "longer-1"} <= found
