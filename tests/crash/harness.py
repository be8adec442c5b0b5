"""Kills commands at random moments, resumes them until they are done, and compares the bits that are left."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import yaml

from squint._files import read_tensors

RECIPE: dict[str, Any] = {
    "name": "crash",
    "dataset": "digits",
    "width": 4,
    "eps": "24/255",
    "curve": [],
    "train": {"epochs": 2, "batch_size": 256, "calibration_images": 64, "average": 0.5},
    "attack": {"images": 4, "resubmissions": 2, "batch_size": 2},
    "systems": {
        "plain": {"draws": 1, "members": [{}]},
        "noisy": {
            "draws": 2,
            "training_draws": 2,
            "objective": {"agreement": 1.0, "conditional_redundancy": 0.1},
            "members": [
                {"weight_bits": 2, "activation_bits": 4, "first_last_bits": 8, "input_bits": 1},
                {"weight_bits": 3, "activation_bits": 4, "first_last_bits": 8, "input_bits": 2},
            ],
        },
    },
}
ONE_SYSTEM: dict[str, Any] = {"systems": {"noisy": RECIPE["systems"]["noisy"]}}
DETECT = ["--images", "2", "--steps", "8", "--resubmissions", "2", "--adaptive", "selective"]
PROFILE = [
    "--threats",
    "linf-pgd",
    "noise-linf",
    "corruption:contrast",
    "--images",
    "4",
    "--resubmissions",
    "2",
]
REFUSED = 2
KILLED = -signal.SIGKILL


Todo = Callable[[Path, Path], list[list[str]]]
"""(recipe, run folder) -> commands."""


class Launcher(Protocol):
    """Runs one command and kills it after some seconds."""

    def run(self, arguments: Sequence[str], errors: Path, kill_after: float | None) -> int:
        """Return the exit code; -9 for a process that was killed. What it printed goes to `errors`."""
        ...


class Processes:
    """Real processes: `python -m squint ARGUMENTS`."""

    def run(self, arguments: Sequence[str], errors: Path, kill_after: float | None) -> int:
        with errors.open("wb") as out:
            command = [sys.executable, "-m", "squint", *arguments]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            try:
                return process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()


class Forks:
    """Real processes too, forked from one that has imported squint already: see `tests.crash.server`."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            text=True,
        )
        assert self._answer() == "ready"

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(60)

    def run(self, arguments: Sequence[str], errors: Path, kill_after: float | None) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([list(arguments), str(errors)]) + "\n")
        self._server.stdin.flush()
        child = int(self._answer())
        # The child is not reaped before its code has been written: its number is still its own.
        if kill_after is not None and not select.select([self._server.stdout], [], [], kill_after)[0]:
            os.kill(child, signal.SIGKILL)
        return int(self._answer())

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


def write_recipe(path: Path, **changes: Any) -> Path:
    """Write the recipe, with some fields changed."""
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def commands(recipe: Path, run: Path) -> list[list[str]]:
    """Return what is run, one after the other: a run, detection and the information plane."""
    return [
        ["--quiet", "run", str(recipe), "--output", str(run)],
        ["--quiet", "detect", str(run), *DETECT],
        ["--quiet", "profile", str(run), *PROFILE],
    ]


def study(recipe: Path, run: Path) -> list[list[str]]:
    """Return the commands of a study over two seeds."""
    return [["--quiet", "run", str(recipe), "--output", str(run), "--seeds", "0", "1"]]


def ladder_on_weights(recipe: Path, run: Path) -> list[list[str]]:
    """Return the commands of a training and of the ladder on its weights (`evaluate` with a folder)."""
    records = ["--output", str(run / "records.json")]
    return [
        ["--quiet", "train", str(recipe), "--output", str(run)],
        ["--quiet", "attack", str(run), "--attacks", "quick", *records],
    ]


def resumed(command: Sequence[str]) -> list[str]:
    """Return a command as it is given again; `attack` goes on without a word."""
    return [*command, *([] if "attack" in command else ["--resume"])]


def finish(launcher: Launcher, recipe: Path, run: Path, todo: Todo = commands) -> list[float]:
    """Run everything without interruption and return how long each command took."""
    seconds = []
    for command in todo(recipe, run):
        started = time.monotonic()
        errors = run.with_suffix(".out")
        code = launcher.run(command, errors, None)
        assert code == 0, errors.read_text()
        seconds.append(time.monotonic() - started)
    return seconds


def finish_with_kills(
    launcher: Launcher,
    recipe: Path,
    run: Path,
    seconds: Sequence[float],
    chance: random.Random,
    kills: int,
    todo: Todo = commands,
) -> int:
    """Run everything, killed up to `kills` times at random moments, and return how often it was killed.

    Every process is killed after a delay drawn uniformly from the time that the uninterrupted command takes,
    unless it is done before.
    """
    done = 0
    for command, duration in zip(todo(recipe, run), seconds, strict=True):
        while True:
            # `--resume` is right where nothing was begun yet, too.
            words = resumed(command)
            delay = chance.uniform(0, duration) if done < kills else None
            errors = run.with_suffix(".out")
            code = launcher.run(words, errors, delay)
            if code == 0:
                break
            assert code == KILLED, errors.read_text()
            done += 1
    return done


def timeless(value: Any) -> Any:
    """Return plain data without times."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if "seconds" not in key}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def contents(run: Path) -> dict[str, Any]:
    """Return everything that a run folder holds, by name; times and the page that shows them excepted."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir() or path.name == "report.html":
            continue
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".safetensors":
            found[name] = _tensors(path)
        else:
            found[name] = path.read_bytes()
    return found


def _tensors(path: Path) -> dict[str, Any]:
    """Return the bytes of a file's tensors and what else it says."""
    tensors, metadata = read_tensors(path)
    found = {name: (str(t.dtype), tuple(t.shape), t.numpy().tobytes()) for name, t in tensors.items()}
    return found | {key: timeless(json.loads(text)) for key, text in metadata.items()}


def assert_same(run: Path, reference: Path) -> None:
    """Weights, records, examples, evidence and figures are equal bit for bit, and nothing is left over."""
    left, right = contents(run), contents(reference)
    assert left.keys() == right.keys(), left.keys() ^ right.keys()
    differing = [name for name in left if left[name] != right[name]]
    assert not differing, differing
