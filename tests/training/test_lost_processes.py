"""`squint run --devices 2` where one process dies: the rest end within a minute with a line, and go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.crash.harness import timeless
from tests.processes import alone
from tests.study.tiny import PLAIN

PARENT = """
import subprocess, sys, time
from squint.training.watching import end_with_children
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
end_with_children([child])
print(child.pid, flush=True)
time.sleep(600)
"""
CHILD = """
import os, sys, time
if os.fork() == 0:
    from squint.training.watching import end_with_parent
    end_with_parent(2, 1)
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


def begun(code: str) -> tuple[subprocess.Popen[str], int]:
    """Start Python on a piece of code, and return it with the process number that it prints."""
    words = [sys.executable, "-c", code]
    process = subprocess.Popen(words, env=alone(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def gone(process: int) -> bool:
    """Whether a process has ended; one whose parent has not asked yet how it ended has."""
    try:
        return "zombie" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def test_a_process_that_computes_ends_after_its_child_with_a_line() -> None:
    process, child = begun(PARENT)
    os.kill(child, signal.SIGKILL)
    _, written = process.communicate(timeout=300)
    assert process.returncode == 1
    assert written == (
        "squint (process 0 of 2): process 1 of 2 was ended by signal 9; what was saved is kept: start all of "
        "them again with --resume\n"
    )


def test_a_process_that_computes_ends_after_the_one_that_started_it() -> None:
    process, child = begun(CHILD)
    process.kill()
    # The child holds the other end of the pipe: closed while the child ends, just before it is gone.
    _, written = process.communicate(timeout=300)
    assert written.startswith("squint (process 1 of 2): process 0 of 2 has ended; what was saved is kept")
    for _ in range(600):
        if gone(child):
            return
        time.sleep(0.1)
    pytest.fail(f"process {child} is still there after a minute")


def recipe(folder: Path) -> Path:
    """A study of one system whose attacks take much longer than its training."""
    plain = PLAIN | {"curve": [], "systems": {"noisy": PLAIN["systems"]["noisy"]}}
    plain["attack"] = {"images": 60, "batch_size": 3, "resubmissions": 4, "attacks": ["pgd-eot10"]}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def job(recipe: Path, run: Path) -> subprocess.Popen[str]:
    words = ["--quiet", "run", str(recipe), "--output", str(run), "--devices", "2", "--resume"]
    return subprocess.Popen(
        [sys.executable, "-m", "squint", *words],
        env=alone(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(run: Path) -> Any:
    return timeless(json.loads((run / "results.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_an_evaluation_whose_process_dies_ends_and_goes_on_to_the_same_records(
    dies: int, tmp_path: Path
) -> None:
    study, stopped, whole = recipe(tmp_path), tmp_path / "stopped", tmp_path / "whole"
    process = job(study, stopped)
    kept = stopped / "attacks" / "noisy"
    # Twenty batches of clean images, and two of the first attack.
    while len(list(kept.glob("batch-*.json"))) < 22:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill((process.pid, child)[dies], signal.SIGKILL)
    # Both hold the pipe's other end.
    _, written = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL, 1)[dies]
    assert f"squint (process {1 - dies} of 2): process" in written
    assert written.strip().endswith("start all of them again with --resume")
    assert "Traceback" not in written
    done = {path.name for path in kept.glob("batch-*.json")}
    assert not (stopped / "results.json").exists()
    # The same weights, attacked from the start.
    shutil.copytree(stopped, whole)
    shutil.rmtree(whole / "attacks")
    for run in (stopped, whole):
        again = job(study, run)
        _, written = again.communicate(timeout=600)
        assert again.returncode == 0, written
    assert len(done) >= 22
    assert results(stopped) == results(whole)
    left, right = ((run / "examples" / "noisy.npz").read_bytes() for run in (stopped, whole))
    assert left == right
    assert not kept.exists()
