"""What the machine decides: how much fits into memory, and how precise its float32 is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


def in_memory(run: Callable[[int | None], _T], chunk: int | None, largest: int) -> tuple[_T, int | None]:
    """Return what `run(chunk)` returns, and the chunk that fitted: halved each time memory runs out.

    Args:
        run: what to do; called again from the start after a failure.
        chunk: draws held at once at first; None: all of them.
        largest: what None stands for.

    Raises:
        RuntimeError: memory runs out with a single draw, or another error.
    """
    while True:
        try:
            return run(chunk), chunk
        except RuntimeError as error:
            if chunk == 1 or "out of memory" not in str(error).lower():
                raise
        chunk = max(1, (chunk or largest) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32 out of matrix products and convolutions inside the context."""
    # Not the older `allow_tf32`: reading it fails once someone has used the newer settings.
    known: Any = torch.backends
    backends = (known.cuda.matmul, known.cudnn.conv)
    found = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, found, strict=True):
            backend.fp32_precision = precision
