"""Triton kernels of `squint.quantize.fused`; imported only where Triton is there."""

from __future__ import annotations

import triton
import triton.language as tl

ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def position(values, low_at, step_at, row, PER_ROW: tl.constexpr, FROM_ZERO: tl.constexpr):
    """Return u = (x - low)/step in float32, rounded as torch rounds it, and the row's low and step."""
    step = tl.load(step_at + row * PER_ROW).to(tl.float32)
    low = 0.0
    x = values.to(tl.float32)
    if not FROM_ZERO:
        low = tl.load(low_at + row * PER_ROW).to(tl.float32)
        x = x - low
    # A fast division is off by an ulp, which moves values across thresholds.
    return tl.math.div_rn(x, step + tl.zeros_like(x)), low, step


@triton.jit
def noise(integers, width, FINE: tl.constexpr):
    """Return W n of integer noise, as `autograd.noise_values` makes it."""
    k = integers.to(tl.int32)
    if FINE:
        n = ((k & -8).to(tl.float32) + 4.0) * 0.0000152587890625
    else:
        n = (k.to(tl.float32) + 0.5) * 0.0000152587890625
    return n * width


@triton.jit
def level(u, top):
    """Return the level K of positions u; NaN stays NaN, as under torch.clamp."""
    k = tl.ceil(u - 0.5)
    return tl.minimum(tl.maximum(k, 0.0, propagate_nan=ALL), top, propagate_nan=ALL)


@triton.jit
def round_kernel(
    x_at,
    y_at,
    k_at,
    low_at,
    step_at,
    width,
    top,
    zero,
    length,
    CODES: tl.constexpr,
    PER_ROW: tl.constexpr,
    FROM_ZERO: tl.constexpr,
    NOISY: tl.constexpr,
    FINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write low + step K of one block of one row, or K - zero, the codes."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = column < length
    at = row * length + column
    x = tl.load(x_at + at, mask=there, other=0.0)
    u, low, step = position(x, low_at, step_at, row, PER_ROW, FROM_ZERO)
    if NOISY:
        u = u + noise(tl.load(k_at + at, mask=there, other=0), width, FINE)
    if CODES:
        y = level(u, top) - zero
    else:
        y = level(u, top) * step
        if not FROM_ZERO:
            y = y + low
    tl.store(y_at + at, y.to(x.dtype), mask=there)


@triton.jit
def gradient_kernel(
    g_at,
    x_at,
    by_x_at,
    sums_at,
    k_at,
    low_at,
    step_at,
    width,
    top,
    half,
    reach,
    length,
    PER_ROW: tl.constexpr,
    FROM_ZERO: tl.constexpr,
    NOISY: tl.constexpr,
    FINE: tl.constexpr,
    LEARNS: tl.constexpr,
    RECTIFIED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write g D of one block of one row, and its sums of g, g D, g D u, g K and g D W n.

    Where the values are yet to be rectified, what is not above zero has no gradient.
    """
    row = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0).to(tl.int64)
    column = block * BLOCK + tl.arange(0, BLOCK)
    there = column < length
    at = row * length + column
    x = tl.load(x_at + at, mask=there, other=0.0)
    g = tl.load(g_at + at, mask=there, other=0.0).to(tl.float32)
    u, _, _ = position(x, low_at, step_at, row, PER_ROW, FROM_ZERO)
    masked = (tl.abs(u - half) <= reach).to(tl.float32) * g
    if RECTIFIED:
        masked = tl.where(x > 0, masked, 0.0)
    tl.store(by_x_at + at, masked.to(x.dtype), mask=there)
    if LEARNS:
        out = sums_at + (row * tl.num_programs(0) + block) * 5
        tl.store(out, tl.sum(g, 0))
        tl.store(out + 1, tl.sum(masked, 0))
        tl.store(out + 2, tl.sum(masked * u, 0))
        drawn = u
        if NOISY:
            n = noise(tl.load(k_at + at, mask=there, other=0), width, FINE)
            drawn = u + n
            tl.store(out + 4, tl.sum(masked * n, 0))
        tl.store(out + 3, tl.sum(g * level(drawn, top), 0))


@triton.jit
def rescale_kernel(sums_at, scale_at, bias_at, channels, length, BLOCK: tl.constexpr):
    """Write scale s + bias over sums s, rounded to whole numbers first; the channel comes last in memory."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < length
    whole = tl.floor(tl.load(sums_at + at, mask=there, other=0.0) + 0.5)
    channel = at % channels
    scale = tl.load(scale_at + channel, mask=there, other=0.0)
    bias = tl.load(bias_at + channel, mask=there, other=0.0)
    tl.store(sums_at + at, whole * scale + bias, mask=there)
