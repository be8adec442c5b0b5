"""Who holds a folder that is no run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from squint._checks import InputError
from squint.study.keeping import held


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
