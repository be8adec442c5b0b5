"""Batch normalization over the whole batch, of which every process sees a part.

Torch's SyncBatchNorm refuses tensors on the CPU; this one is made of a differentiable sum over processes and
runs wherever that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from squint import _ranks


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance (channels,) of all processes' `x`, and how many values each is over.

    With their gradient. Each process's own moments are combined as in Chan, Golub and LeVeque (1983), which
    loses no digits to a difference of squares.

    Args:
        x: activations (batch, channels, ...); as many values in every process. Moments of less than float32
            are float32.
    """
    mean, variance = _moments(x)
    own = x.numel() // x.shape[1]
    if _ranks.count() == 1:
        return mean, variance, own
    means, variances = _ranks.gathered(torch.stack([mean, variance])).unbind(1)
    whole = means.mean(0)
    return whole, (variances + (means - whole).square()).mean(0), own * _ranks.count()


class _Moments(torch.autograd.Function):
    """Mean and biased variance (channels,) by the kernel of batch normalization.

    On a CPU torch.var_mean over all axes but one takes a hundred times as long as a sum, and needs a copy of
    what is narrower than float32.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones(x.shape[1], dtype=_at_least_float32(x.dtype), device=x.device)
        _, mean, inverse = torch.native_batch_norm(x, one, torch.zeros_like(one), None, None, True, 0.0, 0.0)
        # No spread at all is given as 0 or as infinity.
        variance = torch.where(inverse == 0, 0.0, inverse.square().reciprocal())
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, by_mean: Tensor, by_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        values = x.numel() // x.shape[1]
        scale = by_variance * (2 / values)
        return _affine(x, scale, by_mean / values - scale * mean)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor], _Moments.apply(x))  # type: ignore[no-untyped-call]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return x * scale + shift by channel, in the type of `x`: batch normalization by moments 0 and 1."""
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    out: Tensor = F.batch_norm(x, zero, one, scale, shift, training=False, eps=0.0)
    return out


@contextmanager
def synchronised(module: nn.Module) -> Iterator[None]:
    """Let every batch normalization in training mode use the batch of all processes; undone afterwards.

    Outputs, gradients and running statistics are those of one process that sees the joined batch. With one
    process nothing is changed.
    """
    norms = (
        [child for child in module.modules() if isinstance(child, _BatchNorm)] if _ranks.count() > 1 else []
    )
    for norm in norms:
        norm.forward = partial(_forward, norm, norm.forward)  # type: ignore[method-assign, arg-type]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, own: nn.Module, x: Tensor) -> Tensor:
    if not norm.training:
        out: Tensor = own(x)
        return out
    mean, variance, values = batch_moments(x)
    _track(norm, mean.detach(), variance.detach() * values / max(values - 1, 1))
    return normalized(norm, x, mean, variance)


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch does, by the unbiased variance."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


def normalized(norm: _BatchNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return `x` normalized by given moments (channels,) and scaled by the layer, in the type of `x`."""
    # Torch's kernel has no gradient in the moments: its scale and shift hold them.
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.affine:
        shift = shift + norm.bias
    return _affine(x, scale, shift)
