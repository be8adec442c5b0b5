"""A full or failing disk at every single write: one clear line each time, and the same results in the end."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from squint import cli
from squint.report import page
from tests.crash.faults import OPERATIONS, FailingDisk
from tests.crash.harness import ONE_SYSTEM, RECIPE, REFUSED, assert_same, commands, write_recipe

FIGURES = ("accuracy_figure", "losses_figure", "plane_figure", "examples_figure")


def drawn_once(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that draws each system's figure once; drawing is what takes long, not writing."""
    known: dict[Any, Any] = {}

    def figure(results: Any, *rest: Any) -> Any:
        key = rest[0] if rest and isinstance(rest[0], str) else None
        if key not in known:
            known[key] = draw(results, *rest)
        return known[key]

    return figure


def run_until_done(
    todo: Sequence[list[str]], disk: FailingDisk, capsys: pytest.CaptureFixture[str]
) -> list[tuple[str, str, int]]:
    """Run and resume until every write has failed and everything is done; return what failed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FIGURES:
            patch.setattr(page, name, drawn_once(getattr(page, name)))
        disk.install(patch)
        for command in todo:
            words = [*command, "--resume"]
            while True:
                before = len(disk.failed)
                code = cli.main(words)
                said = capsys.readouterr().err
                if code == 0:
                    break
                assert code == REFUSED, said
                assert said.count("\n") == 1, said
                assert said.startswith("squint: cannot "), said
                assert len(disk.failed) > before, said
    return disk.failed


def check(
    recipe: Path, folder: Path, count: int, disk: FailingDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hold the first `count` commands on a failing disk against the same on a whole one."""
    for command in commands(recipe, folder / "whole")[:count]:
        assert cli.main(command) == 0
    capsys.readouterr()
    failed = run_until_done(commands(recipe, disk.root)[:count], disk, capsys)
    assert_same(disk.root, folder / "whole")
    written = {
        str(path.relative_to(folder / "whole"))
        for path in (folder / "whole").rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    for operation in {"open", "write", "fsync", "replace"} & set(disk.operations):
        for error in disk.errors:
            found = {name for kind, name, each in failed if (kind, each) == (operation, error)}
            hit = {name.replace("/.", "/").removeprefix(".") for name in found}
            assert written <= hit, (operation, error)


def test_every_write_of_a_run_fails_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **ONE_SYSTEM, train={**RECIPE["train"], "epochs": 1})
    disk = FailingDisk(tmp_path / "failing", (errno.ENOSPC,), ("write",))
    check(recipe, tmp_path, 1, disk, capsys)


@pytest.mark.slow
def test_every_operation_of_run_ladder_detection_and_plane_fails_with_both_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = {**RECIPE["attack"], "ladder": "quick"}
    recipe = write_recipe(tmp_path / "recipe.yaml", attack=attack)
    disk = FailingDisk(tmp_path / "failing", (errno.ENOSPC, errno.EIO), OPERATIONS)
    check(recipe, tmp_path, 3, disk, capsys)
