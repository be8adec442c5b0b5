"""How a model is run while it is attacked or scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: object) -> Iterator[None]:
    """Put a module and every part of it in evaluation mode with frozen parameters; give all back as it was.

    Attacks want the gradient of the images alone: quantizers would work out that of their ranges for nothing.
    What is computed in float32 is computed in all of float32 (`full_float32`).
    """
    modules = model if isinstance(model, nn.Module) else nn.Module()
    modes = [(part, part.training) for part in modules.modules()]
    learned = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    try:
        for part, _ in modes:
            part.training = False
        for parameter in learned:
            parameter.requires_grad_(False)
        with full_float32():
            yield
    finally:
        for part, training in modes:
            part.training = training
        for parameter in learned:
            parameter.requires_grad_(True)


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
