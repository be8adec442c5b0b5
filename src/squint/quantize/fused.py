"""The quantizer in one pass over a GPU's memory, by Triton kernels.

The plain chain of elementwise operations reads and writes an activation a dozen times and starts as many
kernels. Here values are read once and written once, each way. Forward and input gradient are those of the
plain chain to the last bit; only sums are added up in another order. What convolutions on codes need
(`tensor_cores`) is here too.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from squint.quantize.blocked import Sums
from squint.quantize.functional import FINE_LEVELS, tolerance

_BLOCK = 1024
_WIDEST_GRID = 65_535
"""Most rows of one launch."""


class Pass(NamedTuple):
    """What both directions share.

    Attributes:
        low: lowest level, shaped as `step`.
        step: a scalar, or one value per index of the first dimension that is not 1.
        k: integer noise, laid out as the values are, or None.
        width: noise width in steps.
        levels: number of levels.
        from_zero: whether the lowest level is zero.
    """

    low: Tensor
    step: Tensor
    k: Tensor | None
    width: float
    levels: int
    from_zero: bool


@functools.cache
def _kernels() -> Any:
    """Return the kernels' module, or None where Triton is missing."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("squint.quantize.kernels")


def on_device(x: Tensor) -> bool:
    """Return whether Triton can compute where x lies."""
    return x.is_cuda and _kernels() is not None


def applies(x: Tensor, held: Pass, noise: str) -> bool:
    """Return whether x goes in one pass: on a GPU, dense, of 16 or 32 bits, noise uniform and by element."""
    if not on_device(x) or x.dtype == torch.float64 or x.numel() == 0 or _rows(x, held.step) is None:
        return False
    if not held.from_zero and held.low.shape != held.step.shape:
        return False
    k = held.k
    if k is None:
        return _is_dense(x)
    return noise == "uniform" and x.shape == k.shape and x.is_contiguous() and k.is_contiguous()


def round_to_grid(x: Tensor, held: Pass) -> Tensor:
    """Return x rounded to the grid, of its dtype and strides."""
    return _rounded(x, held, None)


def codes(x: Tensor, held: Pass, zero_point: int) -> Tensor:
    """Return the levels K of x less the zero point, of its dtype and strides; NaN stays NaN."""
    return _rounded(x, held, zero_point)


def _rounded(x: Tensor, held: Pass, zero_point: int | None) -> Tensor:
    y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    rows = _rows(x, held.step) or 1
    length = x.numel() // rows
    # Triton starts its kernels on the current device, whatever the tensors lie on.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _kernels().round_kernel[(-(-length // _BLOCK), rows)](
            x,
            y,
            x if held.k is None else held.k,
            held.low,
            held.step,
            held.width,
            float(held.levels - 1),
            float(zero_point or 0),
            length,
            CODES=zero_point is not None,
            **_constants(held, rows),
        )
    return y


def rescaled(sums: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return scale_c s + bias_c of sums (batch, channels, height, width), each the nearest whole number.

    Writes over `sums` where the channel comes last in memory.
    """
    if not sums.is_contiguous(memory_format=torch.channels_last):
        return sums.round() * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
    with torch.cuda.device_of(sums):  # type: ignore[no-untyped-call]
        _kernels().rescale_kernel[(-(-sums.numel() // _BLOCK),)](
            sums, scale, bias, len(scale), sums.numel(), BLOCK=_BLOCK, enable_fp_fusion=False
        )
    return sums


def gradient(
    grad: Tensor, x: Tensor, held: Pass, *, sums: bool, rectified: bool = False
) -> tuple[Tensor, Sums | None]:
    """Return g D, laid out as x, and where asked for the sums by row, shaped as the step.

    `rectified` says that values are to pass a ReLU first, whose gradient this then includes.
    """
    by_x = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    if grad.stride() != x.stride():
        grad = torch.empty_strided(x.shape, x.stride(), dtype=grad.dtype, device=x.device).copy_(grad)
    rows = _rows(x, held.step) or 1
    length = x.numel() // rows
    blocks = -(-length // _BLOCK)
    parts = torch.empty((rows, blocks, 5) if sums else 1, dtype=torch.float32, device=x.device)
    half = (held.levels - 1) / 2
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _kernels().gradient_kernel[(blocks, rows)](
            grad,
            x,
            by_x,
            parts,
            x if held.k is None else held.k,
            held.low,
            held.step,
            held.width,
            float(held.levels - 1),
            half,
            half + tolerance(held.levels),
            length,
            LEARNS=sums,
            RECTIFIED=rectified,
            **_constants(held, rows),
        )
    if not sums:
        return by_x, None
    total = parts.sum(1).unbind(1)
    shaped = [part.reshape(held.step.shape) for part in total]
    return by_x, Sums(shaped[0], shaped[1], shaped[2], shaped[3], None if held.k is None else shaped[4])


def _constants(held: Pass, rows: int) -> dict[str, Any]:
    return {
        "PER_ROW": int(rows > 1),
        "FROM_ZERO": held.from_zero,
        "NOISY": held.k is not None,
        "FINE": held.levels > FINE_LEVELS,
        "BLOCK": _BLOCK,
        # A fused product and sum rounds once where torch rounds twice.
        "enable_fp_fusion": False,
    }


def _rows(x: Tensor, step: Tensor) -> int | None:
    """Return how many parts of x have a step of their own, one behind the other in memory, or None."""
    if step.numel() == 1:
        return 1
    place, rows = x.ndim - step.ndim, step.shape[0]
    if place < 0 or x.shape[place] != rows or rows > _WIDEST_GRID:
        return None
    alone = all(size == 1 for size in (*x.shape[:place], *step.shape[1:]))
    return rows if alone else None


def _is_dense(x: Tensor) -> bool:
    """Return whether x fills its memory without gaps, its first dimension outermost."""
    body = x[0] if x.ndim == 5 and x.shape[0] == 1 else x
    return body.is_contiguous() or (body.ndim == 4 and body.is_contiguous(memory_format=torch.channels_last))
