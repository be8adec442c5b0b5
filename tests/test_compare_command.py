"""`squint compare`: rows against the files they come from, and everything that it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from squint.evaluation.equivalence import equivalence
from squint.evaluation.evidence_files import load_evidence, save_evidence
from tests.study.finished import EPS, N, done, finished, refused, with_evidence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with evidence on its ensemble, which no test changes."""
    return with_evidence(finished(tmp_path_factory.mktemp("compare") / "run"))


def test_two_systems_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    out = done(capsys, "compare", f"{run}:noisy", f"{run}:plain", "--output", file, "--margin", 0.3)
    rows = json.loads(file.read_text())
    ours, theirs = (np.load(run / "examples" / f"{name}.npz") for name in ("noisy", "plain"))
    settings = ["clean", *ours["settings"].tolist()]
    assert [row["setting"] for row in rows] == settings
    for row, a, b in zip(
        rows,
        [ours["clean_correct"], *ours["correct"]],
        [theirs["clean_correct"], *theirs["correct"]],
        strict=True,
    ):
        assert row["first"] == pytest.approx(a.mean())
        assert row["second"] == pytest.approx(b.mean())
        expected = equivalence(torch.from_numpy(a - b), 0.3)
        assert row["difference"]["ci95"] == pytest.approx(list(expected.ci95))
        assert row["difference"]["margin"] == 0.3
    lines = out.splitlines()
    assert len(lines) == len(settings)
    assert lines[0].startswith(f"clean: {rows[0]['first']:.1%} against {rows[0]['second']:.1%}, ")
    assert f"{N} images" in lines[0]


def test_a_system_is_like_itself_and_the_headline_is_the_default(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    out = done(capsys, "compare", run, f"{run}:noisy", "--output", file)
    assert {row["difference"]["mean"] for row in json.loads(file.read_text())} == {0.0}
    # Twenty images that agree do not show that two systems are alike to within two points.
    assert "not settled" in out
    assert f"evidence 24/255: {load_evidence(run / 'evidence' / 'noisy.npz').correct.mean():.1%}" in out


def test_a_file_of_evidence_meets_a_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = load_evidence(run / "evidence" / "noisy.npz")
    none = replace(evidence, correct=torch.zeros(N, dtype=torch.float64))
    save_evidence(tmp_path / "none.npz", none)
    (line,) = done(capsys, "compare", run, tmp_path / "none.npz").splitlines()
    assert line.startswith(f"evidence 24/255: {evidence.correct.mean():.1%} against 0.0%, ")
    # Fewer images on one side: the first of the other are compared.
    few = replace(
        none,
        **{name: getattr(none, name)[:5] for name in ("index", "labels", "images", "rung", "correct")},
    )
    save_evidence(tmp_path / "few.npz", few)
    (line,) = done(capsys, "compare", run, tmp_path / "few.npz").splitlines()
    assert line.startswith(f"evidence 24/255: {evidence.correct[:5].mean():.1%} against 0.0%, ")
    assert "5 images" in line


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = load_evidence(run / "evidence" / "noisy.npz")
    assert "no run folder" in refused(capsys, "compare", tmp_path, run)
    assert "does not exist" in refused(capsys, "compare", run, tmp_path / "absent.npz")
    line = refused(capsys, "compare", f"{run}:nosy", run)
    assert "system is 'nosy'" in line
    assert "noisy" in line
    assert "margin is 0" in refused(capsys, "compare", run, run, "--margin", 0)
    save_evidence(tmp_path / "other.npz", replace(evidence, labels=(evidence.labels + 1) % 10))
    assert "different images" in refused(capsys, "compare", run, tmp_path / "other.npz")
    save_evidence(tmp_path / "later.npz", replace(evidence, index=evidence.index + 1))
    assert "first images" in refused(capsys, "compare", run, tmp_path / "later.npz")
    save_evidence(tmp_path / "near.npz", replace(evidence, eps=EPS / 2))
    line = refused(capsys, "compare", run, tmp_path / "near.npz")
    assert "evidence 12/255" in line
    assert "in common" in line


def test_runs_on_other_images_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    about = json.loads((other / "run.json").read_text())
    about["data"]["test"] = "0" * 64
    (other / "run.json").write_text(json.dumps(about))
    assert "different images" in refused(capsys, "compare", run, other)
    # A record that does not know its images' digest still knows its data set.
    (other / "run.json").write_text(json.dumps({**about, "data": {}}))
    assert done(capsys, "compare", run, other)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("dataset: digits", "dataset: fashion-mnist"))
    assert "different images" in refused(capsys, "compare", run, other)
    for part in ("examples", "evidence"):
        shutil.rmtree(other / part)
    assert "has no outcomes of noisy yet" in refused(capsys, "compare", run, other)


def test_ladders_of_two_budgets_are_two_attacks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, preset in (("quick", "quick"), ("again", "quick"), ("standard", "standard")):
        folder = tmp_path / place
        shutil.copytree(run, folder)
        kept = dict(np.load(folder / "examples" / "noisy.npz"))
        kept |= {"ladder_settings": np.array(["ladder 24/255"]), "ladder_correct": np.full((1, N), 0.25)}
        np.savez(folder / "examples" / "noisy.npz", **kept)
        results = json.loads((folder / "results.json").read_text())
        record = next(row for row in results["records"] if row["system"] == "noisy")
        results["records"].append(record | {"attack": "ladder", "eps": "24/255", "preset": preset})
        (folder / "results.json").write_text(json.dumps(results))
    out = done(capsys, "compare", tmp_path / "quick", tmp_path / "again")
    assert "ladder 24/255, quick: 25.0% against 25.0%" in out
    assert "ladder" not in done(capsys, "compare", tmp_path / "quick", tmp_path / "standard")
