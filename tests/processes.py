"""Starts the processes of a job on this machine, as torchrun would, for tests of what they do together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def alone() -> dict[str, str]:
    """The environment of a process that belongs to no job: one thread, so that sums are in one order."""
    env = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return env | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def start(count: int, arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start `python ARGUMENTS` as the `count` processes of one job, all of them on this machine."""
    job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=alone() | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Return each process's exit code and what it wrote on both streams; none outlives this."""
    try:
        written = ["".join(process.communicate(timeout=seconds)) for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, written, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
