"""scripts/cifar10_cycles.sh: what it asks of squint, in whose place an interpreter only notes it down."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from squint.study.config import RecipeConfig
from squint.study.folder import read_config
from squint.study.overrides import overridden
from squint.study.recipes import load_recipe

ROOT = Path(__file__).parents[2]
SYSTEM = "stochastic-information"
Script = Callable[..., tuple[int, list[list[str]]]]
# Like squint it leaves a configuration behind, and like pack_weights.py the packed weights; FAIL names a
# folder whose training is stopped.
NOTES = f"""#!/usr/bin/env bash
case "$1" in
  -m)
    echo "$@" >> "$NOTES"
    run=$(echo "$@" | sed 's/.*--output \\([^ ]*\\).*/\\1/')
    mkdir -p "$run" && touch "$run/config.yaml"
    [ "$(basename "$run")" != "${{FAIL:-}}" ]
    ;;
  *) touch "$3/{SYSTEM}.safetensors" ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Script:
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(NOTES, encoding="utf-8")
    python.chmod(0o755)

    def run(*fields: str, **variables: str) -> tuple[int, list[list[str]]]:
        notes.write_text("", encoding="utf-8")
        settings = {"DATA": "data", "RUNS": tmp_path / "runs", "PYTHON": python, "NOTES": notes}
        done = subprocess.run(
            [ROOT / "scripts" / "cifar10_cycles.sh", *fields],
            env={**os.environ, **{name: str(value) for name, value in settings.items()}, **variables},
            capture_output=True,
            check=False,
        )
        return done.returncode, [line.split() for line in notes.read_text(encoding="utf-8").splitlines()]

    return run


def asked(words: list[str]) -> RecipeConfig:
    assert words[:2] == ["-m", "squint"]
    options, recipe = overridden(load_recipe(words[3]), words[4:], "squint")
    assert list(options.only) == [SYSTEM]
    return recipe


def test_every_cycle_is_the_one_that_was_recorded(script: Script) -> None:
    status, commands = script()
    assert status == 0
    assert [words[2] for words in commands] == ["train", "train", "run"]
    for words, name in zip(commands, ("resnet18-floor", "resnet18-second", "resnet18-third"), strict=True):
        recipe, recorded = asked(words), read_config(ROOT / "results" / "cifar10" / name)
        assert recipe.systems[SYSTEM].objective == recorded.systems[SYSTEM].objective
        # How many processes shared it, and how often they looked, is no part of the recipe.
        same = [replace(each.train, devices=1, evaluate_every=1) for each in (recipe, recorded)]
        assert same[0] == same[1]


def test_each_cycle_begins_at_the_packed_weights_of_the_one_before(script: Script, tmp_path: Path) -> None:
    _, commands = script()
    begun = [asked(words).systems[SYSTEM].start for words in commands]
    first, second = (tmp_path / "runs" / name / "packed" for name in ("first", "second"))
    assert begun == [None, str(first / f"{SYSTEM}.safetensors"), str(second / f"{SYSTEM}.safetensors")]


def test_the_same_line_goes_on_where_a_cycle_was_stopped(script: Script) -> None:
    status, commands = script(FAIL="second")
    assert status != 0
    assert len(commands) == 2
    status, again = script()
    assert status == 0
    assert [words[2] for words in again] == ["train", "run"]
    assert [("--resume" in words) for words in again] == [True, False]
    assert [word for word in again[0] if word != "--resume"] == commands[1]
    assert script() == (0, [])


def test_fields_reach_every_cycle(script: Script) -> None:
    _, commands = script("--train.batch-size", "128", EPOCHS="3 2 1")
    assert [asked(words).train.batch_size for words in commands] == [128, 128, 128]
    assert [asked(words).train.epochs for words in commands] == [3, 2, 1]


def test_a_wrong_number_of_cycles_is_refused(script: Script) -> None:
    assert script(EPOCHS="3 2") == (2, [])
