"""`kill -9` at random moments: what is resumed ends in the same bits as what was never interrupted."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from squint.study.keeping import held
from tests.crash.harness import (
    ONE_SYSTEM,
    RECIPE,
    REFUSED,
    Forks,
    Processes,
    assert_same,
    commands,
    contents,
    finish,
    finish_with_kills,
    write_recipe,
)

FEW = 4
MANY = int(os.environ.get("CRASH_KILLS", "20"))


def test_a_run_killed_a_few_times_ends_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **ONE_SYSTEM)
    chance = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    with Forks() as launcher:
        seconds = finish(launcher, recipe, tmp_path / "whole")
        wanted = {"weights/noisy.safetensors", "examples/noisy.npz", "results.json", "detection.json"}
        assert wanted <= contents(tmp_path / "whole").keys()
        killed, runs = 0, 0
        while killed < FEW:
            run = tmp_path / f"killed-{runs}"
            killed += finish_with_kills(launcher, recipe, run, seconds, chance, FEW - killed)
            assert_same(run, tmp_path / "whole")
            runs += 1
        # While this process holds the folder, every other one that would write into it is turned away.
        with held(tmp_path / "whole"):
            for words in (*commands(recipe, tmp_path / "whole"), ["report", str(tmp_path / "whole")]):
                errors = tmp_path / "refused"
                resumed = [*words, "--resume"] if "run" in words else words
                assert launcher.run(resumed, errors, None) == REFUSED
                assert "is in use by another squint process" in errors.read_text()


@pytest.mark.slow
def test_a_run_with_the_ladder_killed_twenty_times_ends_the_same(tmp_path: Path) -> None:
    """Real processes, from the interpreter's start to its end; `make crash` prints what was done."""
    recipe = write_recipe(tmp_path / "recipe.yaml", attack={**RECIPE["attack"], "ladder": "quick"})
    chance = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    seconds = finish(Processes(), recipe, tmp_path / "whole")
    killed, runs = 0, 0
    while killed < MANY:
        run = tmp_path / f"killed-{runs}"
        killed += finish_with_kills(Processes(), recipe, run, seconds, chance, MANY - killed)
        assert_same(run, tmp_path / "whole")
        runs += 1
        print(f"{killed} of {MANY} kills, {runs} runs the same as one of {sum(seconds):.0f} s without kills")
