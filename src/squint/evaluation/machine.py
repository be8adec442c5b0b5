"""What the machine decides: how much fits into memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from squint._memory import is_out_of_memory
from squint.ensemble import Ensemble

_T = TypeVar("_T")


def in_memory(run: Callable[[int | None], _T], chunk: int | None, largest: int) -> tuple[_T, int | None]:
    """Return what `run(chunk)` returns, and the chunk that fitted: halved each time memory runs out.

    Args:
        run: what to do; called again from the start after a failure.
        chunk: draws held at once at first; None: all of them.
        largest: what None stands for.

    Raises:
        RuntimeError: memory runs out with a single draw, or another error; MemoryError likewise.
    """
    while True:
        try:
            return run(chunk), chunk
        except (RuntimeError, MemoryError) as error:
            if chunk == 1 or not is_out_of_memory(error):
                raise
        chunk = max(1, (chunk or largest) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def device_of(model: nn.Module) -> torch.device:
    """Return where a model computes: where its parameters or buffers lie, or the CPU if it has none."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


@dataclass
class Fitting:
    """How much of an evaluation fits into memory: found where it runs out, and kept for later batches.

    Attributes:
        draws: draws of a gradient whose graph is held at once; None: all.
        rows: images of one forward pass without graph; None: the ensemble's own `chunk`.
    """

    draws: int | None = None
    rows: int | None = None

    def gradients(self, run: Callable[[int | None], _T], eot: int) -> _T:
        """Return `run(draws)`, begun again with half the draws at once each time memory runs out."""
        found, self.draws = in_memory(run, self.draws, eot)
        return found

    def both(self, model: object, run: Callable[[int | None], _T], eot: int) -> _T:
        """Return `run(draws)` with fewer draws at once, then fewer images in the passes without a graph."""
        return self.forward(model, lambda: self.gradients(run, eot))

    @contextmanager
    def kept(self, model: object) -> Iterator[None]:
        """Let an `Ensemble` have no more images in a pass than were found to fit."""
        if not isinstance(model, Ensemble) or self.rows is None:
            yield
            return
        own, model.chunk = model.chunk, self.rows
        try:
            yield
        finally:
            model.chunk = own

    def forward(self, model: object, run: Callable[[], _T]) -> _T:
        """Return `run()`, begun again with half the images in a pass each time memory runs out.

        Only an `Ensemble` can be asked in parts, which changes no draw.
        """
        if not isinstance(model, Ensemble):
            return run()
        own = model.chunk

        def with_rows(rows: int | None) -> _T:
            model.chunk = own if rows is None else rows
            return run()

        try:
            found, self.rows = in_memory(with_rows, self.rows, own)
        finally:
            model.chunk = own
        return found
