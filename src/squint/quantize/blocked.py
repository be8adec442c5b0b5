"""One scalar grid over a large CPU tensor, piece by piece.

A chain of elementwise operations over a whole activation is bound by memory: every link reads and writes all
of it. Here the chain runs on pieces that stay in cache, straight from the dtype of the values and back to it.
Forward and backward give what the plain chain of `StochasticRound` gives; only sums are added up in another
order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from squint.quantize.functional import tolerance

PIECE = 2**16
"""Elements of one piece: its float32 temporaries fit into the second-level cache."""

_LARGE = 2**19


class Grid(NamedTuple):
    """A grid in plain numbers: level k is low + step * k, k = 0 .. levels - 1."""

    low: float
    step: float
    levels: int


class Sums(NamedTuple):
    """Sums of g, g D, g D u, g K and g D W n: g the output's gradient, D the slope's mask, K the level."""

    gradient: Tensor
    masked: Tensor
    position: Tensor
    level: Tensor
    noise: Tensor | None


Noise = Callable[[Tensor], Tensor]
"""Turns a piece of integer noise into noise in steps."""


def flat(values: Tensor) -> Tensor | None:
    """Return a dense tensor's elements in the order of memory as a view, or None where gaps forbid it."""
    if values.is_contiguous():
        return values.view(-1)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1).reshape(-1)
    return None


def applies(x: Tensor, step: Tensor, k: Tensor | None) -> bool:
    """Return whether x can go piece by piece and gains by it: on the CPU, dense, one step, noise by element.

    Small float32 tensors in the usual order of memory fit into the cache as they are.
    """
    if x.device.type != "cpu" or step.ndim > 0 or x.dtype == torch.float64:
        return False
    if x.dtype == torch.float32 and x.is_contiguous() and x.numel() < _LARGE:
        return False
    if k is None:
        return flat(x) is not None
    return x.shape == k.shape and x.is_contiguous() and k.is_contiguous()


def round_to_grid(x: Tensor, grid: Grid, k: Tensor | None, noise: Noise) -> Tensor:
    """Return x rounded to the grid, of its dtype and memory format; `noise` gives W n for integers k."""
    y = torch.empty_like(x)
    for part, out, integers in _pieces(x, y, k):
        u = _position(part, grid)
        values = _level(u, None if integers is None else noise(integers), grid).mul_(grid.step)
        out.copy_(values.add_(grid.low) if grid.low != 0 else values)
    return y


def codes(x: Tensor, grid: Grid, k: Tensor | None, noise: Noise) -> Tensor | None:
    """Return the levels K of x as uint8, in x's memory format, or None where x holds a NaN, which has none.

    Args:
        x: dense float values; quantized ones are never written.
        grid: of 256 levels or fewer.
        k: integer noise, laid out as x is, or None.
        noise: gives W n for integers.
    """
    found = torch.empty_like(x, dtype=torch.int8)
    total = torch.zeros(())
    # To int8 torch converts four times as fast as to uint8: large codes go there shifted by half the range.
    shifted = grid.levels > 128
    for part, out, integers in _pieces(x, found, k):
        u = _position(part, grid)
        level = _level(u, None if integers is None else noise(integers), grid)
        total += level.sum()
        out.copy_(level.sub_(128) if shifted else level)
    if bool(total.isnan()):
        return None
    unsigned = found.view(torch.uint8)
    return unsigned.bitwise_xor_(128) if shifted else unsigned


def masked(grad: Tensor, x: Tensor, lowest: float, highest: float) -> Tensor:
    """Return the float32 gradient where x lies strictly between two values and 0 elsewhere, laid out as x."""
    by_x = torch.empty_like(x)
    # The gradient may come in another memory format than the values.
    grad = grad.contiguous(memory_format=_format(x))
    for g, part, out in zip(_split(grad), _split(x), _split(by_x), strict=True):
        torch.ops.aten.hardtanh_backward.grad_input(g.float(), part, lowest, highest, grad_input=out)
    return by_x


def gradient(
    grad: Tensor, x: Tensor, grid: Grid, k: Tensor | None, noise: Noise, *, sums: bool
) -> tuple[Tensor, Sums | None]:
    """Return g D and, where asked for, the inner products that the parameters' gradients are made of."""
    by_x = torch.empty_like(x)
    half = (grid.levels - 1) / 2
    reach = half + tolerance(grid.levels)
    # The gradient may come in another memory format than the values.
    grad = grad.contiguous(memory_format=_format(x))
    found: list[tuple[Tensor, ...]] = []
    for (part, out, integers), g in zip(_pieces(x, by_x, k), _split(grad), strict=True):
        g = g.float()
        u = _position(part, grid)
        masked = torch.sub(u, half).abs_().le_(reach).mul_(g)
        out.copy_(masked)
        if sums:
            n = None if integers is None else noise(integers)
            by_noise = () if n is None else (torch.dot(masked, n),)
            position = torch.dot(masked, u)
            level = torch.dot(g, _level(u, n, grid))
            found.append((g.sum(), masked.sum(), position, level, *by_noise))
    if not sums:
        return by_x, None
    total = [torch.stack(column).sum() for column in zip(*found, strict=True)]
    return by_x, Sums(total[0], total[1], total[2], total[3], total[4] if k is not None else None)


def _position(part: Tensor, grid: Grid) -> Tensor:
    """Return u = (x - low)/step in float32, in a buffer of its own."""
    values = part.float()
    fresh = values is not part
    if grid.low != 0:
        values = values.sub_(grid.low) if fresh else values.sub(grid.low)
        fresh = True
    return values.div_(grid.step) if fresh else values.div(grid.step)


def _level(u: Tensor, noise: Tensor | None, grid: Grid) -> Tensor:
    """Return the level K of positions u; writes over u."""
    if noise is not None:
        u.add_(noise)
    return u.sub_(0.5).ceil_().clamp_(0, grid.levels - 1)


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _split(values: Tensor) -> tuple[Tensor, ...]:
    elements = flat(values)
    assert elements is not None
    return torch.split(elements, PIECE)


def _pieces(x: Tensor, out: Tensor, k: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    parts, outs = _split(x), _split(out)
    integers: tuple[Tensor | None, ...] = (None,) * len(parts) if k is None else _split(k)
    return zip(parts, outs, integers, strict=True)
