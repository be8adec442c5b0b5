"""Run folders: who may use one, and what is left in it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from squint._checks import InputError
from squint.study.folder import RunFolder, read_config, read_results
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
