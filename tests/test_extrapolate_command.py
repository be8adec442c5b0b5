"""`squint extrapolate`: rows against the estimator, cards, and everything that it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import squint
from squint.evaluation.evidence_files import load_evidence, save_evidence
from squint.evaluation.extrapolation import extrapolate
from squint.study.folder import read_results
from squint.study.identity import weights_digest
from squint.study.published import publish
from tests.study.finished import EPS, N, done, finished, refused, with_evidence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with evidence on its ensemble, which no test changes."""
    return with_evidence(finished(tmp_path_factory.mktemp("extrapolate") / "run"))


def pgd(run: Path) -> dict[str, Any]:
    records: list[dict[str, Any]] = read_results(run)["records"]
    return next(r for r in records if (r["system"], r["attack"], r["eps"]) == ("noisy", "pgd", "24/255"))


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text(json.dumps(records))
    return path


def of_all(run: Path, tmp_path: Path, **changes: Any) -> Path:
    """Return a file that says what the plain attack left of a thousand images."""
    return written(tmp_path / "all.json", pgd(run) | {"n": 1000, "robust_accuracy": 0.2} | changes)


def cheap(run: Path) -> torch.Tensor:
    kept = np.load(run / "examples" / "noisy.npz")
    return torch.from_numpy(kept["correct"][kept["settings"].tolist().index("pgd 24/255")])


def with_ladder(run: Path, folder: Path) -> Path:
    """Return a copy of the run that holds half under the plain attack, nine tenths of that under `quick`."""
    shutil.copytree(run, folder)
    kept = dict(np.load(folder / "examples" / "noisy.npz"))
    shares = np.linspace(0, 1, N)
    kept["correct"][kept["settings"].tolist().index("pgd 24/255")] = shares
    kept |= {"ladder_settings": np.array(["ladder 24/255"]), "ladder_correct": 0.9 * shares[None]}
    np.savez(folder / "examples" / "noisy.npz", **kept)
    results = json.loads((folder / "results.json").read_text())
    record = pgd(run) | {"attack": "ladder", "preset": "quick", "robust_accuracy": 0.9 * shares.mean()}
    results["records"].append(record)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_evidence_of_a_run_is_extrapolated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    out = done(capsys, "extrapolate", run, of_all(run, tmp_path), "--output", file)
    (row,) = json.loads(file.read_text())
    evidence = load_evidence(run / "evidence" / "noisy.npz").correct
    expected = extrapolate(evidence, cheap(run), 0.2, 1000)
    assert row["estimate"] == expected.to_json()
    assert row["by_sample"] == pytest.approx(float(cheap(run).mean()))
    assert out.startswith(f"evidence 24/255: {float(evidence.mean()):.1%} of {N} images; of all 1,000 it ")
    assert f"would be {expected.share:.1%} (95 % {100 * expected.ci95[0]:.1f} to " in out
    assert "by pgd 24/255, which leaves" in out


def test_a_published_folder_says_what_its_run_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(run, "noisy", tmp_path / "published")
    file = of_all(run, tmp_path)
    own, published = (done(capsys, "extrapolate", place, file) for place in (run, tmp_path / "published"))
    assert "evidence 24/255" in own
    assert published == own


def test_outcomes_are_named_by_the_ladder_that_left_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = with_ladder(run, tmp_path / "run")
    results = json.loads((ladder / "results.json").read_text())
    own = results["records"][-1]
    share = float(np.load(ladder / "examples" / "noisy.npz")["ladder_correct"].mean())
    others = [{"n": N - 1, "robust_accuracy": share}, {"n": N, "robust_accuracy": share + 0.01}]
    for place, names in ((0, "standard"), (len(others), "quick")):
        listed = [own | {"preset": "standard"} | other for other in others]
        listed.insert(place, own | {"preset": names, "robust_accuracy": share})
        results["records"][-1:] = listed
        (ladder / "results.json").write_text(json.dumps(results))
        out = done(capsys, "extrapolate", ladder, of_all(run, tmp_path))
        results["records"][-len(listed) :] = [own]
        assert out.startswith(f"ladder 24/255 ({names}): " if names == "standard" else "quick 24/255: ")


def test_records_of_other_weights_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ens = squint.load(run / "weights" / "noisy.safetensors")
    publish(run, "noisy", tmp_path / "published")
    # In floats or packed: they are the same.
    digest = weights_digest(ens)
    assert digest == weights_digest(squint.load(tmp_path / "published"))
    with torch.no_grad():
        next(ens.parameters()).add_(0.1)
    other = weights_digest(ens)
    assert other != digest
    own = pgd(run)["details"]
    for place in (run, tmp_path / "published"):
        done(capsys, "extrapolate", place, of_all(run, tmp_path, details=own | {"weights": digest}, seed=7))
        file = of_all(run, tmp_path, details=own | {"weights": other})
        assert "all.json holds records of other weights than" in refused(capsys, "extrapolate", place, file)
    words = refused(capsys, "publish", run, "--output", tmp_path / "card", "--records", file)
    assert "all.json holds records of other weights than" in words
    assert not (tmp_path / "card").exists()
    # Older records name none: another seed is another training.
    words = refused(capsys, "extrapolate", run, of_all(run, tmp_path, seed=7))
    assert f"had seed 7; allowed: {pgd(run)['seed']}, as in" in words


def test_further_evidence_and_fewer_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = load_evidence(run / "evidence" / "noisy.npz")
    few = {name: getattr(evidence, name)[:15] for name in ("index", "labels", "images", "rung", "correct")}
    save_evidence(tmp_path / "few.npz", replace(evidence, **few))
    out = done(
        capsys, "extrapolate", f"{run}:noisy", of_all(run, tmp_path), "--evidence", tmp_path / "few.npz"
    )
    assert [line.split(" images;")[0].split(" of ")[-1] for line in out.splitlines()] == ["20", "15"]
    assert out.splitlines()[1].startswith(str(tmp_path / "few.npz"))


def test_a_ladder_is_called_by_its_budget_and_stands_on_the_card(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = with_ladder(run, tmp_path / "climbed"), of_all(run, tmp_path)
    first, second = done(capsys, "extrapolate", folder, file).splitlines()
    assert first.startswith(f"quick 24/255: 45.0% of {N} images")
    assert "it would be 18.0%" in first
    assert "correlation 1.00" in first
    assert second.startswith("evidence 24/255: ")

    beside = tmp_path / "standard"
    (beside / "evidence").mkdir(parents=True)
    shutil.copy(run / "evidence" / "noisy.npz", beside / "evidence")
    share = float(load_evidence(run / "evidence" / "noisy.npz").correct.mean())
    climbed = {"attack": "ladder", "preset": "standard", "details": {"uint8_accuracy": share}}
    standard = written(beside / "records.json", pgd(run) | climbed)
    published = publish(folder, "noisy", tmp_path / "published", [file, standard])
    rows = read_results(published)["extrapolated"]
    assert [row["setting"] for row in rows] == ["quick 24/255", "ladder 24/255 (standard), in 8-bit images"]
    card = (published / "card.md").read_text()
    assert "whose record is not here" not in card
    assert "What they would leave of all images, estimated (`squint extrapolate`), not measured:" in card
    assert "- quick 24/255: 18.0% (95 %: " in card
    assert ") of 1,000, " in card
    # Evidence of another climb is not this one's, and another plain attack is none to estimate by.
    for name, change in (("images", {"n": N - 1}), ("radius", {"eps": "8/255"}), ("share", {"details": {}})):
        written(beside / "records.json", pgd(run) | climbed | change)
        other = publish(folder, "noisy", tmp_path / name, [file, standard])
        assert [row["setting"] for row in read_results(other)["extrapolated"]] == ["quick 24/255"]
    written(beside / "records.json", {k: v for k, v in (pgd(run) | climbed).items() if k != "details"})
    assert (
        len(read_results(publish(folder, "noisy", tmp_path / "old", [file, standard]))["extrapolated"]) == 1
    )
    longer = publish(folder, "noisy", tmp_path / "longer", [of_all(run, tmp_path, steps=7)])
    assert read_results(longer)["extrapolated"] == []
    # Nothing is said where there is nothing to say it by.
    alone = publish(folder, "noisy", tmp_path / "alone")
    assert "estimated" not in (alone / "card.md").read_text()


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "extrapolate", run, of_all(run, tmp_path, n=N))
    assert "needed: a ladder on ten images or more" in line
    assert "evidence 24/255" in line
    assert "needed" in refused(capsys, "extrapolate", run, of_all(run, tmp_path, eps="20/255"))
    assert "needed" in refused(capsys, "extrapolate", run, of_all(run, tmp_path, attack="ladder"))
    line = refused(capsys, "extrapolate", run, of_all(run, tmp_path, steps=7))
    assert f"had steps 7; allowed: {pgd(run)['steps']}, as in {run}:noisy" in line
    assert "had draws 64" in refused(capsys, "extrapolate", run, of_all(run, tmp_path, draws=64))
    assert "allowed: records of noisy" in refused(
        capsys, "extrapolate", run, of_all(run, tmp_path, system="plain")
    )
    for change in ({"n": "1000"}, {"n": 1000.0}, {"steps": "20"}):
        assert "holds no records" in refused(capsys, "extrapolate", run, of_all(run, tmp_path, **change))
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    line = refused(capsys, "extrapolate", unfinished, of_all(run, tmp_path))
    assert "has no record of pgd at 24/255 yet" in line
    (tmp_path / "none.json").write_text("{}")
    assert "holds no records" in refused(capsys, "extrapolate", run, tmp_path / "none.json")
    assert "nosy" in refused(capsys, "extrapolate", f"{run}:nosy", of_all(run, tmp_path))
    evidence = load_evidence(run / "evidence" / "noisy.npz")
    save_evidence(tmp_path / "other.npz", replace(evidence, labels=(evidence.labels + 1) % 10))
    save_evidence(tmp_path / "plain.npz", replace(evidence, system="plain"))
    for name, wanted in (("other", "different images"), ("plain", "is of plain; allowed: evidence of noisy")):
        words = (run, of_all(run, tmp_path), "--evidence", tmp_path / f"{name}.npz")
        assert wanted in refused(capsys, "extrapolate", *words)
    save_evidence(tmp_path / "near.npz", replace(evidence, eps=EPS / 2))
    out = done(capsys, "extrapolate", run, of_all(run, tmp_path), "--evidence", tmp_path / "near.npz")
    assert len(out.splitlines()) == 1
