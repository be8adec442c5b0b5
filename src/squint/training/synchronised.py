"""Batch normalization over the whole batch, of which every process sees a part.

Torch's SyncBatchNorm refuses tensors on the CPU; this one is made of a differentiable sum over processes and
runs wherever that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from squint import _ranks


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance (channels,) of all processes' `x`, and how many values each is over.

    With their gradient. Each process's own moments are combined as in Chan, Golub and LeVeque (1983), which
    loses no digits to a difference of squares.

    Args:
        x: activations (batch, channels, ...), float32 or float64; as many values in every process.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    own = x.numel() // x.shape[1]
    if _ranks.count() == 1:
        return mean, variance, own
    means, variances = _ranks.gathered(torch.stack([mean, variance])).unbind(1)
    whole = means.mean(0)
    return whole, (variances + (means - whole).square()).mean(0), own * _ranks.count()


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
    wide = x if x.dtype == torch.float64 else x.float()
    mean, variance, values = batch_moments(wide)
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
    # By torch's own fused kernel, whose running moments have no gradient: 0 and 1, and the layer's scale and
    # shift hold the given ones.
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.affine:
        shift = shift + norm.bias
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    out: Tensor = F.batch_norm(x, zero, one, scale, shift, training=False, eps=0.0)
    return out
