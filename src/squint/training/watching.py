"""The processes that one command started watch each other: where one dies, the rest end soon, with a line.

A process that waits for another notices by itself that it is gone; one that computes, an attack on a large
batch for instance, would notice when it is done, hours later.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed

PERIOD = 0.5
"""Seconds between two looks."""
GRACE = 3.0
"""Seconds that a process has to end by itself, with its own words, once another one has."""


class WatchedLauncher(_SubprocessScriptLauncher):
    """Fabric's launcher of the further processes of a command, with a watch that says what happened.

    Fabric's own watch ends the first process like `kill -9`, without a word to the person who waits for it.
    """

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Start the processes, where they are still to be started, then call `function`."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            end_with_children(self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def end_with_children(children: Sequence[subprocess.Popen[Any]]) -> None:
    """End this process, with exit code 1 and a line, soon after a child has died or failed.

    Args:
        children: processes 1, 2, ... of the job; those that are left are ended too.
    """

    def died() -> str | None:
        for place, child in enumerate(children, 1):
            code = child.poll()
            if code:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                return f"process {place} of {len(children) + 1} {how}"
        return None

    def end_rest() -> None:
        for child in children:
            child.kill()

    _watch(died, end_rest, len(children) + 1, 0)


def end_with_parent(processes: int, place: int) -> None:
    """End this process, with exit code 1 and a line, soon after the one that started it has ended.

    Args:
        processes: processes of the job.
        place: of this one, from 1.
    """
    if any(thread.name == _NAME for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def died() -> str | None:
        return None if os.getppid() == parent else f"process 0 of {processes} has ended"

    _watch(died, lambda: None, processes, place)


_NAME = "squint-watch"


def _watch(died: Callable[[], str | None], end_rest: Callable[[], None], processes: int, place: int) -> None:
    def look() -> None:
        while (reason := died()) is None:
            time.sleep(PERIOD)
        time.sleep(GRACE)
        end_rest()
        print(
            f"squint (process {place} of {processes}): {reason}; what was saved is kept: start all of them "
            "again with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=look, daemon=True, name=_NAME).start()
