"""What stops a training: Ctrl-C, as a request that it honours between two steps, and too little memory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from squint._checks import InputError
from squint._memory import is_out_of_memory
from squint.training.config import TrainConfig


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


@contextmanager
def enough_memory(config: TrainConfig, members: int, checkpoint: Path | None) -> Iterator[None]:
    """Say what to lower where memory runs out inside the context; the checkpoint is left as it is.

    Raises:
        squint.InputError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        kept = ""
        if checkpoint is not None and checkpoint.exists():
            kept = f"; with more memory the same training goes on from {checkpoint}"
        raise InputError(
            f"out of memory in training with batches of {config.batch_size}, {config.draws} draws and "
            f"{members} members: lower train.batch_size, training_draws or the network's width{kept}"
        ) from error
