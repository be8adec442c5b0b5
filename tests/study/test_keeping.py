"""Who holds a folder that is no run folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

import pytest

from squint._checks import InputError
from squint.study.keeping import file_digest, held


def test_other_folders_are_held_where_that_is_asked_for(tmp_path: Path) -> None:
    for folder in (tmp_path / "made" / "here", tmp_path):
        theirs = folder / ".results.json.abcdefgh.tmp"
        with held(folder, make=True):
            theirs.touch()
            with (
                pytest.raises(InputError, match="is in use by another squint process"),
                held(folder, make=True),
            ):
                raise AssertionError("held twice")
        # It may be a running process's, in a run folder below.
        with held(folder, make=True):
            assert theirs.exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file"), held(tmp_path / "file", make=True):
        raise AssertionError("a file was held")


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    made = tmp_path / "made" / "here"
    with held(made, make=True):
        assert made.is_dir()
    assert list(tmp_path.iterdir()) == []
    # What lies in it, or beside it by then, stays, and so does a folder that was there before.
    with held(made, make=True):
        (tmp_path / "made" / "beside").touch()
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["beside"]
    with held(made, make=True):
        (made / "kept").touch()
    assert {each.name for each in made.iterdir()} == {"kept", ".lock"}
    (tmp_path / "empty").mkdir()
    with held(tmp_path / "empty", make=True):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_lock_that_was_removed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes the folder between opening its lock and locking it."""
    lock = fcntl.flock

    def removed(file: IO[str], how: int) -> None:
        lock(file, how)
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", removed)
    with pytest.raises(InputError, match="is in use by another squint process"), held(tmp_path, make=True):
        raise AssertionError("held by a lock that nobody can find")


def test_what_stands_in_a_locks_place_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe would wait for its other end, and a link would make a file elsewhere."""
    for name in ("pipe", "link"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / ".lock")
    (tmp_path / "link" / ".lock").symlink_to(tmp_path / "elsewhere")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=f"cannot write .*{name}"), held(tmp_path / name, make=True):
            raise AssertionError(f"a {name} was held")
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(InputError, match="is not a file"):
        file_digest(tmp_path / "pipe" / ".lock")
