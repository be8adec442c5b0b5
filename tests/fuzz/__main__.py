"""`python -m tests.fuzz --count 20000`: damaged and hostile files for every reader, in own processes."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

TASKS = ("hostile", "lengths", "random")
ROOT = Path(__file__).parents[2]
MEMORY = "/dev/shm"
SHARE = 5000
"""Random files per process."""


def fuzz(tasks: Sequence[str], count: int, seed: int, failures: Path) -> tuple[int, str]:
    """Return the exit code, 0 without a failure, and what was said, one line per failure and task.

    Args:
        tasks: of `TASKS`; "lengths" cuts every file off at every length.
        count: random files.
        seed: of the first process; the next ones count up.
        failures: folder for the files that were not refused as they should be.
    """
    parts = [(task, 0, seed) for task in tasks if task != "random"]
    if "random" in tasks:
        starts = range(0, count, SHARE)
        parts += [("random", min(SHARE, count - start), seed + k) for k, start in enumerate(starts)]
    code, said = 0, ""
    for number, (task, size, own) in enumerate(parts):
        # Hundreds of thousands of files come and go: in memory, where a machine has files there.
        with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as scratch:
            place, found = failures / f"{number}-{task}", Path(scratch) / "failures"
            environment = {
                **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TMPDIR": scratch,
            }  # fmt: skip
            words = [sys.executable, "-m", "tests.fuzz.worker", task, str(size), str(own), str(found)]
            done = subprocess.run(
                words, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            said += "".join(f"{line}\n" for line in done.stdout.splitlines())
            if done.returncode:
                code = 1
                shutil.copytree(found, place, dirs_exist_ok=True)
                # A process that was ended by a signal leaves the file that it was reading.
                ended = f"{task}: ended with {done.returncode}; files are in {place}\n"
                said += ended if done.returncode == 1 else ended + done.stderr[-2000:]
    return code, said


def main() -> int:
    """Run what was asked for and print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="random files; default: 20000")
    parser.add_argument("--seed", type=int, default=0, help="of the random files; default: 0")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--failures", type=Path, default=Path("runs/fuzz"), help="where failures are kept")
    options = parser.parse_args()
    code, said = fuzz(options.tasks, options.count, options.seed, options.failures)
    print(said, end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
