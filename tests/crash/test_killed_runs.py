"""`kill -9` at random moments: what is resumed ends in the same bits as what was never interrupted."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import yaml

from squint.study.keeping import held
from tests.crash.harness import (
    ONE_SYSTEM,
    RECIPE,
    REFUSED,
    Forks,
    Processes,
    Todo,
    assert_same,
    commands,
    contents,
    finish,
    finish_with_kills,
    ladder_on_weights,
    resumed,
    study,
    write_recipe,
)
from tests.study.collections import PLAIN as HYPOTHESIS
from tests.study.tiny import merged

FEW = 4
MANY = int(os.environ.get("CRASH_KILLS", "20"))


def test_a_run_killed_a_few_times_ends_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **ONE_SYSTEM)
    chance = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    with Forks() as launcher:
        seconds = finish(launcher, recipe, tmp_path / "whole")
        wanted = {"weights/noisy.safetensors", "examples/noisy.npz", "results.json", "detection.json"}
        wanted |= {"plane.json", "plane/noisy/batch-00000.json"}
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
                again = words if "report" in words else resumed(words)
                assert launcher.run(again, errors, None) == REFUSED
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


def kill_and_compare(recipe: Path, folder: Path, todo: Todo, kills: int) -> None:
    """Hold what forked processes leave that are killed so often against what one leaves that is not."""
    chance = random.Random(int(os.environ.get("CRASH_SEED", "0")))
    with Forks() as launcher:
        seconds = finish(launcher, recipe, folder / "whole", todo)
        killed, runs = 0, 0
        while killed < kills:
            run = folder / f"killed-{runs}"
            killed += finish_with_kills(launcher, recipe, run, seconds, chance, kills - killed, todo)
            assert_same(run, folder / "whole")
            runs += 1
            print(f"{killed} of {kills} kills, {runs} runs the same as one of {sum(seconds):.0f} s")


@pytest.mark.slow
def test_a_study_of_the_hypothesis_over_two_seeds_killed_many_times_ends_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    changes = {"attack": {"images": 4, "resubmissions": 2, "batch_size": 2}}
    plain = json.loads(json.dumps(merged(HYPOTHESIS, changes)))  # a recipe may not name a thing twice
    recipe.write_text(yaml.safe_dump(plain))
    kill_and_compare(recipe, tmp_path, study, MANY)
    found = contents(tmp_path / "whole")
    assert {"verdicts.json", "seed-0/results.json", "seed-1/weights/bits.safetensors"} <= found.keys()
    assert "hypothesis" in found["verdicts.json"]


@pytest.mark.slow
def test_the_ladder_on_weights_killed_many_times_ends_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **ONE_SYSTEM)
    kill_and_compare(recipe, tmp_path, ladder_on_weights, MANY)
    found = contents(tmp_path / "whole")
    assert {"records.json", "evidence/noisy.npz"} <= found.keys()
    assert any(name.startswith("ladder/noisy-quick/") for name in found)
