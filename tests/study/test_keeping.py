"""Who holds a folder that is no run folder."""

from __future__ import annotations

import os
from pathlib import Path

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
