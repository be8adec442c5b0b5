"""What running out of memory looks like."""

from __future__ import annotations

import torch

_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: Python's, CUDA's or torch's own on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
