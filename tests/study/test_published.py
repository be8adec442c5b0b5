"""A published system can be loaded, verified and challenged without its data set."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import squint
import squint.study.run
from squint import data as D
from squint import zoo
from squint._checks import InputError
from squint.cli import main
from squint.study.folder import read_results
from squint.study.published import kept_images, publish
from tests.study.finished import N, clean_images, finished, with_evidence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with evidence on its ensemble."""
    return with_evidence(finished(tmp_path_factory.mktemp("published") / "run"))


@pytest.fixture(scope="module")
def shelf(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of published systems, with one called `tiny`."""
    folder = tmp_path_factory.mktemp("shelf")
    publish(run, "noisy", folder / "tiny")
    return folder


@pytest.fixture
def shipped(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shelf as the package's own, and no data set to be had."""
    monkeypatch.setattr(zoo, "_ROOT", shelf)

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("the data set was asked for")

    monkeypatch.setattr(D, "load", nothing)


def test_the_packed_weights_predict_as_the_run_s(run: Path, shelf: Path) -> None:
    theirs = squint.load(run / "weights" / "noisy.safetensors")
    packed = squint.load(shelf / "tiny")
    x, _ = clean_images()
    logits = [e.member_logits(x, 3, generator=torch.Generator().manual_seed(1)) for e in (theirs, packed)]
    assert torch.equal(*logits)
    sizes = [
        p.stat().st_size
        for p in (run / "weights" / "noisy.safetensors", shelf / "tiny" / "weights" / "noisy.safetensors")
    ]
    assert sizes[1] < sizes[0]


def test_the_card_names_digest_and_every_record(shelf: Path) -> None:
    text = (shelf / "tiny" / "card.md").read_text()
    weights = (shelf / "tiny" / "weights" / "noisy.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in text
    assert "| pgd | 24/255 |" in text
    assert "| pgd | 8/255 |" in text
    assert "Red flags:" in text
    assert "| no |" in text
    assert "The evidence is of a ladder whose record is not here" in text


def test_further_records_join_the_run_s_own(run: Path, tmp_path: Path) -> None:
    own = next(r for r in read_results(run)["records"] if r["system"] == "noisy" and r["attack"] == "pgd")
    more, foreign = own | {"n": 4321}, own | {"system": "plain", "n": 5678}
    (tmp_path / "more.json").write_text(json.dumps([foreign, more]))
    folder = publish(run, "noisy", tmp_path / "mine", [tmp_path / "more.json"])
    records = read_results(folder)["records"]
    assert records[-1] == more
    assert records[:-1] == [r for r in read_results(run)["records"] if r["system"] == "noisy"]
    card = (folder / "card.md").read_text()
    assert "| 4321 |" in card
    assert "| 5678 |" not in card

    (tmp_path / "foreign.json").write_text(json.dumps([foreign]))
    with pytest.raises(InputError, match=r"foreign.json holds records of plain; allowed: records of noisy"):
        publish(run, "noisy", tmp_path / "new", [tmp_path / "foreign.json"])
    wrong: tuple[dict[str, Any], ...] = (
        {"n": "many"},
        {"ci95": 5},
        {"red_flags": "none"},
        {"details": []},
        {"system": 3},
    )
    for plain in ([1], {}, [{"system": "noisy"}], *([more | change] for change in wrong)):
        (tmp_path / "none.json").write_text(json.dumps(plain))
        with pytest.raises(
            InputError, match=r"none.json holds no records \(.*\); allowed: what squint attack"
        ):
            publish(run, "noisy", tmp_path / "new", [tmp_path / "none.json"])
    assert not (tmp_path / "new").exists()


def test_what_a_run_has_left_for_later_is_not_published(run: Path, tmp_path: Path) -> None:
    part = shutil.copytree(run, tmp_path / "run")
    results = json.loads((part / "results.json").read_text())
    (part / "results.json").write_text(json.dumps({**results, "left": ["plain"]}))
    publish(part, "noisy", tmp_path / "tiny")
    assert json.loads((tmp_path / "tiny" / "results.json").read_text())["left"] == []


def test_the_kept_images_are_the_first_of_the_test_set(shelf: Path) -> None:
    kept = kept_images(shelf / "tiny")
    test = D.load("digits").test
    assert kept is not None
    assert len(kept) == N
    assert torch.equal(kept.images, test.images[:N])
    assert torch.equal(kept.labels, test.labels[:N])
    assert kept.class_names == test.class_names


@pytest.mark.usefixtures("shipped")
def test_a_name_is_enough_to_load_verify_and_challenge(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert zoo.names() == ["tiny"]
    assert len(squint.load("tiny").members) == 2
    assert main(["verify", "tiny", "--seed", "3", "--quiet"]) == 0
    assert "n=20; agrees" in capsys.readouterr().out
    # The record's own images cannot beat it.
    assert main(["break", "tiny", str(shelf / "tiny" / "evidence" / "noisy.npz"), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "24/255" in said
    assert "the record stands" in said
    assert main(["info", "tiny", "--quiet"]) == 0


@pytest.mark.usefixtures("shipped")
def test_an_attack_on_a_shipped_model_writes_nothing_into_the_package(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(shelf.rglob("*"))
    words = ["attack", "tiny", "--eps", "24/255", "--images", "2", "--resubmissions", "16", "--quiet"]
    assert main([*words, "--attacks", "seed", "quick"]) == 0
    assert "n=2" in capsys.readouterr().out
    assert sorted(shelf.rglob("*")) == before
    assert (tmp_path / "runs" / "shipped" / "tiny" / "evidence" / "noisy.npz").is_file()


@pytest.mark.usefixtures("shipped")
def test_more_images_than_are_kept_are_refused(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = kept_images(shelf / "tiny")
    assert kept is not None
    assert main(["attack", "tiny", "--images", str(len(kept) + 1), "--quiet"]) == 2
    allowed = f"at most the {len(kept)} that tiny keeps, or more with --data-dir"
    assert f"images is {len(kept) + 1}; allowed: {allowed}" in capsys.readouterr().err


@pytest.mark.usefixtures("shipped")
def test_a_path_that_exists_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert zoo.resolved("tiny") != Path("tiny")
    (tmp_path / "tiny").mkdir()
    assert zoo.resolved("tiny") == Path("tiny")
    assert zoo.resolved("other.safetensors") == Path("other.safetensors")
    with pytest.raises(InputError, match=r"other is not there; allowed: a path that exists, or tiny$"):
        zoo.resolved("other")


def test_a_publication_that_ends_half_way_leaves_nothing(
    run: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Path]] = []

    def stop(*_: object, **__: object) -> None:
        seen.append([path for path in tmp_path.rglob("*") if path.is_file()])
        raise KeyboardInterrupt

    output = tmp_path / "shelf" / "new"
    with monkeypatch.context() as patch:
        patch.setattr(D, "load", stop)
        with pytest.raises(KeyboardInterrupt):
            publish(run, "noisy", output)
    # The weights were written, but not where they would be taken for a publication.
    assert any(path.name == "noisy.safetensors" for path in seen[0])
    assert not any(path.is_relative_to(output) for path in seen[0])
    assert list(output.parent.iterdir()) == []
    output.mkdir()
    publish(run, "noisy", output)
    names = [sorted(str(p.relative_to(top)) for p in top.rglob("*")) for top in (output, shelf / "tiny")]
    assert names[0] == names[1]
    assert [path.name for path in output.parent.iterdir()] == ["new"]


def test_the_data_set_may_lie_elsewhere(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, places = D.load, []

    def noted(name: str, place: str | None, **options: Any) -> D.Splits:
        places.append(place)
        return load(name, None, **options)

    monkeypatch.setattr(D, "load", noted)
    new = tmp_path / "new"
    assert main(["publish", str(run), "--output", str(new), "--data-dir", "elsewhere", "--quiet"]) == 0
    assert places == ["elsewhere"]
    assert "data_dir: null" in (new / "config.yaml").read_text()


@pytest.mark.parametrize("note", ["noisy.training.json", "noisy.json"])
def test_weights_that_were_exchanged_are_not_spoken_for(
    run: Path, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    other = tmp_path / "run"
    shutil.copytree(run, other)
    for file in (other / "systems").iterdir():
        if file.name != note:
            file.unlink()
    shutil.copy(other / "weights" / "plain.safetensors", other / "weights" / "noisy.safetensors")
    with pytest.raises(InputError, match=rf"noisy.safetensors is not the file that .*{note} is of"):
        publish(other, "noisy", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    capsys.readouterr()
    assert main(["export", str(other), "--system", "noisy", "--quiet", "--force"]) == 2
    assert "is not the file that" in capsys.readouterr().err
    assert not list(other.glob("*.onnx"))


def test_bad_input_is_named(run: Path, shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not empty"):
        publish(run, "noisy", shelf / "tiny")
    with pytest.raises(InputError, match=r"card.md, which is a file; allowed: a new folder"):
        publish(run, "noisy", shelf / "tiny" / "card.md")
    with pytest.raises(InputError, match=r"cannot write .*card.md/new"):
        publish(run, "noisy", shelf / "tiny" / "card.md" / "new")
    with pytest.raises(InputError, match=r"system is 'other'"):
        publish(run, "other", tmp_path / "new")
    with pytest.raises(InputError, match=r"plain.npz is missing: run the study with --attack.ladder"):
        publish(run, "plain", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "images.npz").write_bytes((shelf / "tiny" / "images.npz").read_bytes()[:200])
    with pytest.raises(InputError, match=r"images.npz"):
        kept_images(damaged)
