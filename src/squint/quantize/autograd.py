"""The quantizer as an autograd function: a random step forward, a named surrogate backward."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from squint.quantize import blocked, compiled, fused
from squint.quantize import functional as Q


class Rounding(NamedTuple):
    """What one call of `StochasticRound` needs to know, in plain numbers, so that no device is waited for.

    Attributes:
        levels: number of levels L.
        noise: name of the noise.
        gradient: name of the surrogate.
        width: noise width in steps, or None where it is learned and only its tensor knows it.
        width_factor: how much wider than the noise the surrogate's density is.
        from_zero: whether the lowest level is zero, which saves two passes over the data.
    """

    levels: int
    noise: str
    gradient: str
    width: float | None
    width_factor: float = 1.0
    from_zero: bool = False


def noise_values(k: Tensor, noise: str, levels: int, dtype: torch.dtype) -> Tensor:
    """Return noise n of variance 1/12 from equally likely integers k in -2^15 .. 2^15-1.

    n is the quantile of (k + 1/2)/2^16, so a CDF is met to within 2^-17. Fine grids use 13 of the bits for
    uniform noise: then |n| stays further from 1/2 than u is rounded, and grid points never move.
    """
    if noise == "uniform":
        lattice, centre = _uniform_lattice(k, levels)
        return lattice.to(dtype).add_(centre).mul_(2**-16)
    return _quantiles(noise, dtype, k.device)[k.to(torch.int32).add_(2**15)]


@functools.lru_cache(maxsize=16)
def _quantiles(noise: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the noise of every k in order: looking it up is cheaper than an inverse CDF per element."""
    with torch.inference_mode(False), torch.no_grad():
        k = torch.arange(2**16, dtype=torch.float64, device=device)
        return Q.quantile(k.add_(0.5).mul_(2**-16), noise).to(dtype)


def _uniform_lattice(k: Tensor, levels: int) -> tuple[Tensor, float]:
    """Return integers m and the offset c with n = (m + c)/2^16 for uniform noise."""
    return (k & -8, 4.0) if levels > Q.FINE_LEVELS else (k, 0.5)


class StochasticRound(torch.autograd.Function):
    """y = low + step * K with the realised level K; backward through the surrogate that `rounding` names.

    The parameters' gradients use the realised K in place of its mean, and the realised noise, so that their
    means are the derivatives of E[y] (low, step with the width tied to it, and the width in steps). Under
    `straight_through` the step learns from the rounding residual alone, as in LSQ (Esser et al. 2020).
    Double backward differentiates the surrogate.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, low: Tensor, step: Tensor, width: Tensor, k: Tensor | None, rounding: Rounding
    ) -> Tensor:
        """Return y, of x's shape and dtype; k is integer noise that broadcasts against x, None for n = 0."""
        ctx.rounding = rounding
        learns = any(ctx.needs_input_grad[1:4])
        ctx.compiled = rounding.width is not None and compiled.applies(x, step, k)
        if ctx.compiled:
            ctx.save_for_backward(x, low, step, width, None, None)
            return compiled.round_to_grid(x, low, step, rounding.levels)
        if rounding.width is not None and blocked.applies(x, step, k):
            ctx.save_for_backward(x, low, step, width, None, k if learns else None)
            return blocked.round_to_grid(x, *_plain(low, step, k, rounding))
        held = _pass(low, step, k, rounding)
        if rounding.width is not None and fused.applies(x, held, rounding.noise):
            ctx.save_for_backward(x, low, step, width, None, k if learns else None)
            return fused.round_to_grid(x, held)
        levels = rounding.levels
        u = _position(_wide(x), low, step, rounding.from_zero)
        # In place from here: on CPU every pass and every fresh buffer counts.
        if k is not None:
            _add_noise(u, k, width, rounding)
        u.sub_(0.5)
        y = u.ceil_().clamp_(0, levels - 1).mul_(step)
        if not rounding.from_zero:
            y.add_(low)
        ctx.save_for_backward(x, low, step, width, y if learns else None, k if learns else None)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the surrogate's gradients for x, low, step and width."""
        (grad,) = grads
        rounding: Rounding = ctx.rounding
        levels, noise = rounding.levels, rounding.noise
        identity = rounding.gradient == "identity"
        needs_low, needs_step, needs_width = ctx.needs_input_grad[1:4]
        learns = needs_low or needs_step or needs_width
        if identity and not learns:
            return grad, None, None, None, None, None
        x, low, step, width, y, k = ctx.saved_tensors
        dense = rounding.gradient == "expected" and rounding.width != 0
        # Uniform noise of width 1 has slope 1 on the closed range: the mask alone is the exact slope.
        exact = (
            noise == "uniform" and rounding.width is not None and rounding.width * rounding.width_factor == 1
        )
        whole = y is None and rounding.width is not None
        held = _pass(low, step, k, rounding)
        on_gpu = whole and fused.applies(x, held, noise)
        masks = not torch.is_grad_enabled() and not identity and (exact or not dense)
        if masks and ctx.compiled:
            by_x, found = compiled.gradient(grad, x, low, step, levels)
            return (by_x, *_from_sums(found, step, dense, needs_low, needs_step), None, None, None)
        if masks and (on_gpu or (whole and blocked.applies(x, step, k))):
            if on_gpu:
                by_x, sums = fused.gradient(grad, x, held, sums=learns)
            else:
                by_x, sums = blocked.gradient(grad, x, *_plain(low, step, k, rounding), sums=learns)
            return (by_x, *_from_sums(sums, step, dense, needs_low, needs_step), None, None, None)
        if learns and y is None:
            with torch.no_grad():
                if on_gpu:
                    y = fused.round_to_grid(_wide(x), held)
                elif ctx.compiled:
                    y = compiled.round_to_grid(_wide(x), low, step, levels)
                else:
                    y = blocked.round_to_grid(_wide(x), *_plain(low, step, k, rounding))
        given, x, grad = grad, _wide(x), _wide(grad)
        u = _position(x, low, step, rounding.from_zero)
        moment: Tensor | None = None
        if dense and (needs_width or not exact):
            d, moment = _slope(u, width * rounding.width_factor, levels, noise)
            by_x = grad * d
        else:
            by_x = _masked(grad, u, levels, reuse=not learns)
        if not learns:
            return by_x.to(given.dtype), None, None, None, None, None
        # Sums of products need no buffers: sum grad (K - u D + n W D) as three inner products.
        by_low = by_step = by_width = by_n = None
        if needs_low:
            by_low = grad.sum_to_size(low.shape) - by_x.sum_to_size(low.shape)
        if k is not None and ((dense and needs_step) or needs_width):
            by_n = _inner(by_x, noise_values(k, noise, levels, u.dtype).expand_as(u), step)
        by_u = _inner(by_x, u, step)
        if needs_step:
            by_level = _inner(grad, y, step)
            if not rounding.from_zero:
                by_level = by_level - grad.sum_to_size(step.shape) * low
            by_step = by_level / step - by_u
            if dense and by_n is not None:
                by_step = by_step + by_n * width
        if needs_width:
            by_width = torch.zeros_like(by_u) if by_n is None else by_n
            if moment is not None:
                by_width = by_width - (by_u - _inner(grad, moment, step)) / width
            by_width = (by_width * step).sum_to_size(width.shape)
        return (given if identity else by_x.to(given.dtype)), by_low, by_step, by_width, None, None


def _wide(values: Tensor) -> Tensor:
    """Return the values in float32, or as they are where they are wider."""
    return values if values.dtype == torch.float64 else values.float()


def _plain(
    low: Tensor, step: Tensor, k: Tensor | None, rounding: Rounding
) -> tuple[blocked.Grid, Tensor | None, blocked.Noise]:
    """Return grid and noise as `blocked` takes them."""
    width = rounding.width or 0.0

    def noise(integers: Tensor) -> Tensor:
        n = noise_values(integers, rounding.noise, rounding.levels, torch.float32)
        return n if width == 1 else n.mul_(width)

    return blocked.Grid(float(low), float(step), rounding.levels), k, noise


def _pass(low: Tensor, step: Tensor, k: Tensor | None, rounding: Rounding) -> fused.Pass:
    """Return grid and noise as `fused` takes them."""
    return fused.Pass(low, step, k, rounding.width or 0.0, rounding.levels, rounding.from_zero)


def _from_sums(
    sums: blocked.Sums | None, step: Tensor, dense: bool, needs_low: bool, needs_step: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of low and step: sum g (1 - D) and sum g (K - u D + n W D)."""
    if sums is None:
        return None, None
    by_step = sums.level - sums.position
    if dense and sums.noise is not None:
        by_step = by_step + sums.noise
    return (
        (sums.gradient - sums.masked).to(step.dtype) if needs_low else None,
        by_step.to(step.dtype) if needs_step else None,
    )


def _position(x: Tensor, low: Tensor, step: Tensor, from_zero: bool) -> Tensor:
    """Return u = (x - low)/step in a buffer of its own."""
    return torch.div(x, step) if from_zero else torch.sub(x, low).div_(step)


def _add_noise(u: Tensor, k: Tensor, width: Tensor, rounding: Rounding) -> None:
    """Add width * n to u in place, piece by piece: on CPU a large fresh buffer costs more than its use."""
    same = u.shape == k.shape and u.is_contiguous() and k.is_contiguous() and u.device.type == "cpu"
    pieces = zip(_pieces(u), _pieces(k), strict=True) if same else [(u, k)]
    for part, integers in pieces:
        n = noise_values(integers, rounding.noise, rounding.levels, u.dtype)
        if rounding.width is None:
            part.add_(n.mul_(width))
        else:
            part.add_(n, alpha=rounding.width)


def _pieces(values: Tensor) -> tuple[Tensor, ...]:
    """Return views of consecutive elements."""
    return torch.split(values.view(-1), blocked.PIECE)


def _slope(u: Tensor, width: Tensor, levels: int, noise: str) -> tuple[Tensor, Tensor]:
    """Return `Q.slope`, computed piece by piece where nothing will differentiate it."""
    if torch.is_grad_enabled() or u.device.type != "cpu" or not u.is_contiguous():
        return Q.slope(u, width, levels, noise)
    slopes, moments = torch.empty_like(u), torch.empty_like(u)
    for part, slope, moment in zip(_pieces(u), _pieces(slopes), _pieces(moments), strict=True):
        d, m = Q.slope(part, width, levels, noise)
        slope.copy_(d)
        moment.copy_(m)
    return slopes, moments


def _masked(grad: Tensor, u: Tensor, levels: int, *, reuse: bool) -> Tensor:
    """Return `grad` on the closed range and 0 outside; may write over u where `reuse` allows."""
    if torch.is_grad_enabled():
        return grad * Q.inside(u, levels)
    half = (levels - 1) / 2
    centred = u.sub_(half) if reuse else torch.sub(u, half)
    return centred.abs_().le_(half + Q.tolerance(levels)).mul_(grad)


def _inner(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Return the sum of a * b over the dimensions along which `like` is broadcast."""
    if like.ndim == 0:
        return torch.dot(a.reshape(-1), b.reshape(-1))
    return (a * b).sum_to_size(like.shape)


class LowerBound(torch.autograd.Function):
    """max(value, floor) whose gradient, scaled, still passes where a descent step would lift the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, floor: float, scale: float = 1.0) -> Tensor:
        """Return the value, or the floor where the value lies below it; only the gradient is scaled."""
        ctx.save_for_backward(value)
        ctx.floor, ctx.scale = floor, scale
        return value.clamp_min(floor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the scaled gradient, zero only where it would push a value further below the floor."""
        (grad,) = grads
        (value,) = ctx.saved_tensors
        if ctx.scale != 1:
            grad = grad * ctx.scale
        return torch.where(value >= ctx.floor, grad, grad.clamp_max(0)), None, None
