"""Ctrl-C as a request that training honours between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingStopped(KeyboardInterrupt):
    """Training was interrupted; the checkpoint holds all that was done."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn Ctrl-C into a request that the loop honours between two steps; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # None stands for a handler that was not set from Python and cannot be put back.
    previous = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def request(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
