"""Run folders: who may use one, and what is left in it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from squint._checks import InputError
from squint._files import read_json, write_bytes, write_json
from squint.study.folder import RunFolder, read_config, read_results
from squint.study.keeping import held
from squint.study.recipes import read_recipe
from tests.study.tiny import tiny


def begun(path: Path) -> Path:
    """Return a run folder with a finished system, let go of."""
    with RunFolder(path, tiny(), resume=False, overwrite=False) as folder:
        for file in (folder.weights("plain"), folder.outcome("plain"), folder.checkpoint("noisy")):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"kept")
        folder.log("plain", {"event": "epoch", "epoch": 1})
    return path


def test_a_new_folder_holds_the_recipe(tmp_path: Path) -> None:
    path = begun(tmp_path / "a" / "b")
    assert read_config(path) == read_recipe(path / "config.yaml") == tiny()


def test_a_run_from_before_weights_had_a_floor_was_trained_without(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    file = path / "config.yaml"
    text = file.read_text()
    assert "  step_floor: 1.5\n" in text
    file.write_text(text.replace("  step_floor: 1.5\n", ""))
    assert read_config(path).train.step_floor == 0
    # As a recipe of one's own it is trained as recipes are now.
    assert read_recipe(file) == tiny()
    with pytest.raises(InputError, match=r"train\.step_floor \(was 0.0, now 1.5\)"):
        RunFolder(path, tiny(), resume=True, overwrite=False)
    file.write_text(text.replace("  step_floor: 1.5\n", "  step_floor: 2.0\n"))
    assert read_config(path).train.step_floor == 2


def test_an_existing_run_needs_a_word(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="exists: continue it with --resume or replace it with --overwrite"):
        RunFolder(path, tiny(), resume=False, overwrite=False)
    with pytest.raises(InputError, match="exclude each other"):
        RunFolder(path, tiny(), resume=True, overwrite=True)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_resume_keeps_and_overwrite_removes(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    (path / "notes.txt").write_text("mine")
    published = [path / name for name in ("images.npz", "card.md", "noisy-nearest.onnx", "noisy-sample.onnx")]
    for file in published:
        file.write_bytes(b"of the earlier run")
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        assert folder.weights("plain").read_bytes() == b"kept"
    with RunFolder(path, tiny(seed=3), resume=False, overwrite=True) as folder:
        assert not folder.weights("plain").exists()
        assert not folder.outcome("plain").exists()
        assert not folder.checkpoint("noisy").exists()
    assert not (path / "log.jsonl").exists()
    assert (path / "notes.txt").read_text() == "mine"
    assert read_config(path).seed == 3


def test_resume_of_another_recipe_names_the_field(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"another recipe: train.epochs \(was 2, now 3\); resume with the same"
    ):
        RunFolder(path, tiny(train={"epochs": 3}), resume=True, overwrite=False)
    RunFolder(path, tiny(data_dir="moved"), resume=True, overwrite=False).close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The lock belongs to an open file: a second opening is refused in this process as in another."""
    with RunFolder(tmp_path / "run", tiny(), resume=False, overwrite=False):
        for resume, overwrite in ((True, False), (False, True)):
            with pytest.raises(InputError, match="is in use by another squint process"):
                RunFolder(tmp_path / "run", tiny(), resume=resume, overwrite=overwrite)
        assert (tmp_path / "run" / "config.yaml").is_file()
    RunFolder(tmp_path / "run", tiny(), resume=True, overwrite=False).close()


def test_a_refused_folder_is_not_left_locked(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    (path / "log.jsonl").write_text("no json\n")
    with pytest.raises(InputError, match=r"log.jsonl is not readable"):
        RunFolder(path, tiny(), resume=True, overwrite=False)
    (path / "log.jsonl").unlink()
    RunFolder(path, tiny(), resume=True, overwrite=False).close()


def test_foreign_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(InputError, match=r"home is no run folder of squint's \(no config.yaml\)"):
            RunFolder(tmp_path / "home", tiny(), resume=resume, overwrite=overwrite)
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match=r"thesis.tex is a file; needed: a folder"):
        RunFolder(tmp_path / "home" / "thesis.tex", tiny(), resume=False, overwrite=False)
    with pytest.raises(InputError, match=r"cannot write .*below: Not a directory"):
        RunFolder(tmp_path / "home" / "thesis.tex" / "below", tiny(), resume=False, overwrite=False)


def test_what_a_killed_process_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.yaml.x1.tmp").touch()
    RunFolder(tmp_path, tiny(), resume=False, overwrite=False).close()


def finished(path: Path) -> Path:
    """Return a run folder with two finished systems, with made-up weights and records."""
    with RunFolder(path, tiny(), resume=False, overwrite=False) as folder:
        for system in ("plain", "noisy"):
            write_bytes(folder.weights(system), system.encode())
            folder.finish_training(system, 2.5)
            outcome = {"system": {"name": system}, "records": [{"system": system}], "plane": []}
            folder.finish_attack(system, outcome)
    return path


def test_finished_systems_come_back_and_lose_their_checkpoint(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        # Left by a process that ended between its last two writes.
        write_bytes(folder.checkpoint("plain"), b"old")
        assert folder.training_seconds("plain") == 2.5
        assert not folder.checkpoint("plain").exists()
        outcome = folder.finished_attack("plain")
        assert outcome is not None
        assert outcome["system"] == {"name": "plain"}
        folder.weights("plain").unlink()
        folder.outcome("plain").unlink()
        assert folder.training_seconds("plain") is None
        assert folder.finished_attack("plain") is None


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "weights/plain.safetensors",
            b"noisy",
            "is not the file that its training wrote: put that one back, or",
        ),
        ("weights/plain.safetensors", b"pla", "is not the file that its training wrote"),
        ("systems/plain.training.json", b"{", "is not readable JSON.*; remove it to train plain again"),
        ("systems/plain.training.json", b"[]", "is damaged: remove it to train plain again"),
        ("systems/plain.training.json", b"{}", "is damaged: remove it to train plain again"),
        ("systems/plain.training.json", b'{"seconds": 1%s}' % (b"0" * 400), "is damaged: remove it to train"),
        ("systems/plain.json", b"{", "is not readable JSON.*; remove it to attack plain again"),
        ("systems/plain.json", b"{}", "does not hold the records of plain: remove it to attack plain again"),
    ],
)
def test_damaged_and_exchanged_files_say_what_to_remove(
    file: str, content: bytes, said: str, tmp_path: Path
) -> None:
    path = finished(tmp_path / "run")
    (path / file).write_bytes(content)
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        read = folder.finished_attack if file == "systems/plain.json" else folder.training_seconds
        with pytest.raises(InputError, match=said):
            read("plain")


def test_another_systems_records_are_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        folder.outcome("plain").write_bytes(folder.outcome("noisy").read_bytes())
        with pytest.raises(InputError, match="does not hold the records of plain"):
            folder.finished_attack("plain")


def test_records_of_other_weights_are_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        kept = read_json(folder.outcome("plain"))
        write_bytes(folder.weights("plain"), b"trained again")
        folder.finish_training("plain", 2.5)
        with pytest.raises(InputError, match=r"plain.json holds records of another weights file: remove it "):
            folder.finished_attack("plain")
        # From before there were such keys.
        old = {key: kept[key] for key in ("system", "records", "plane")}
        write_json(folder.outcome("plain"), old)
        assert folder.finished_attack("plain") == old


def test_what_cannot_be_removed_is_not_left_to_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished(tmp_path / "run")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        with pytest.raises(InputError, match=r"cannot remove .*weights: Input/output error"):
            RunFolder(path, tiny(seed=3), resume=False, overwrite=True)
    assert read_config(path) == tiny()
    RunFolder(path, tiny(seed=3), resume=False, overwrite=True).close()
    assert not (path / "systems").exists()


def test_a_folder_of_a_newer_squint_is_refused(tmp_path: Path) -> None:
    """By every command, and before anything in it is read or changed."""
    path = finished(tmp_path / "run")
    about = {"format_version": 2, "environments": [{"versions": {"squint-nn": "9.1"}}], "new": 1}
    (path / "run.json").write_text(json.dumps(about))
    (path / "config.yaml").write_text("unheard: of\n")
    said = r"run was written by a newer squint \(9.1; folder format 2, this one reads 1\): update squint"
    for read in (read_config, read_results):
        (path / "results.json").write_text("{}")
        with pytest.raises(InputError, match=said):
            read(path)
    for resume, overwrite in ((True, False), (False, True)):
        with pytest.raises(InputError, match=said):
            RunFolder(path, tiny(), resume=resume, overwrite=overwrite)
    assert (path / "weights" / "plain.safetensors").is_file()
    (path / "run.json").write_text('{"format_version": "1"}')
    with pytest.raises(InputError, match=r"run.json is damaged: remove it if this squint began the run"):
        read_config(path)


def test_every_machine_that_computed_a_part_is_in_the_record(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    own = json.loads((path / "run.json").read_text())["environments"]
    assert len(own) == 1
    assert own[0]["versions"]["torch"]
    assert own[0]["hardware"]["threads"] >= 1
    other = {"versions": {"torch": "0"}, "hardware": {"threads": 64}}
    (path / "run.json").write_text(json.dumps({"format_version": 1, "environments": [other]}))
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        assert folder.environments == [other, *own]
    (path / "run.json").unlink()  # a folder from before there was such a file
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        assert folder.environments == own


def test_what_killed_processes_began_is_cleared_away(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    left = [path / ".results.json.abcdefgh.tmp", path / "ladder" / "x" / ".batch.npz.12345678.tmp"]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (path / ".mine.tmp").touch()
    with held(path):
        assert not any(file.exists() for file in left)
        with pytest.raises(InputError, match="is in use by another squint process"):
            RunFolder(path, tiny(), resume=True, overwrite=False)
    assert (path / ".mine.tmp").exists()
    with held(tmp_path / "none"):
        assert not (tmp_path / "none").exists()


def test_log_keeps_one_entry_per_epoch(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        folder.log("noisy", {"event": "epoch", "epoch": 1, "terms": {"ce": 2.0}})
        folder.log("noisy", {"event": "epoch", "epoch": 1, "terms": {"ce": 1.0}})
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    assert [(line["system"], line["epoch"]) for line in lines] == [("plain", 1), ("noisy", 1)]
    assert lines[1]["terms"] == {"ce": 1.0}


def test_examples_and_results_are_plain(tmp_path: Path) -> None:
    path = begun(tmp_path / "run")
    with pytest.raises(InputError, match=r"no folder of a finished run: it has no results.json"):
        read_results(path)
    with RunFolder(path, tiny(), resume=True, overwrite=False) as folder:
        folder.write_results({"records": []})
        folder.write_examples("plain", {"names": np.array(["a", "bc"]), "index": np.arange(3)})
        with np.load(folder.examples("plain"), allow_pickle=False) as arrays:
            assert arrays["names"].tolist() == ["a", "bc"]
            assert arrays["index"].tolist() == [0, 1, 2]
    assert read_results(path) == {"records": []}
    (path / "results.json").write_text('{"records": [')
    with pytest.raises(InputError, match=r"results.json is not readable JSON"):
        read_results(path)
    (path / "results.json").write_text("[]")
    with pytest.raises(InputError, match="holds no results"):
        read_results(path)
    with pytest.raises(InputError, match=r"it has no config.yaml"):
        read_config(tmp_path)
