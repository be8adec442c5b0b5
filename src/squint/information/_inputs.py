"""What the estimators accept: finite (n, features) tensors of equal length, in float32 or wider."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError

SUM_TOLERANCE = 1e-3
"""How far a row of probabilities may be from summing to one."""


def check_features(name: str, z: Tensor, *, minimum: int = 1) -> Tensor:
    """Return `z` in float32 or wider, or raise `InputError` unless it is finite and (n, features).

    Args:
        name: how the message calls the argument.
        z: (n, features), floating point.
        minimum: smallest n that the estimator is defined for.
    """
    if not isinstance(z, Tensor):
        raise InputTypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}")
    if not z.is_floating_point():
        raise InputError(f"{name} has dtype {z.dtype}; allowed: floating point")
    if z.ndim != 2 or z.numel() == 0:
        raise InputError(f"{name} has shape {tuple(z.shape)}; allowed: a non-empty (n, features) tensor")
    if z.shape[0] < minimum:
        raise InputError(f"{name} has {z.shape[0]} rows; allowed: {minimum} or more")
    z = z if z.dtype == torch.float64 else z.float()
    low, high = (float(v) for v in torch.aminmax(z.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{name} contains NaN or infinity; allowed: finite values")
    largest = math.sqrt(torch.finfo(z.dtype).max / (16 * z.shape[1]))
    if max(-low, high) > largest:  # squared distances would overflow
        raise InputError(f"{name} has values in [{low:g}, {high:g}]; allowed: within ±{largest:.2g}")
    return z


def check_equal_lengths(names: Sequence[str], zs: Sequence[Tensor]) -> None:
    """Raise `InputError` unless all tensors have the same number of rows as the first."""
    for name, z in zip(names[1:], zs[1:], strict=True):
        if z.shape[0] != zs[0].shape[0]:
            raise InputError(
                f"{name} has {z.shape[0]} rows but {names[0]} has {zs[0].shape[0]}; allowed: equal lengths"
            )


def check_pair(z1: Tensor, z2: Tensor, *, minimum: int = 1) -> tuple[Tensor, Tensor]:
    """Return both tensors in their wider common dtype, checked one by one and against each other."""
    z1, z2 = check_features("z1", z1, minimum=minimum), check_features("z2", z2, minimum=minimum)
    check_equal_lengths(("z1", "z2"), (z1, z2))
    dtype = torch.promote_types(z1.dtype, z2.dtype)
    return z1.to(dtype), z2.to(dtype)


def check_members(features: Sequence[Tensor], name: str = "features") -> list[Tensor]:
    """Return the members' tensors in their wider common dtype, or raise `InputError` naming the bad one."""
    if isinstance(features, Tensor) or not isinstance(features, Sequence) or not features:
        raise InputTypeError(f"{name} must be a non-empty list of (n, features) tensors, one per member")
    names = [f"{name}[{index}]" for index in range(len(features))]
    checked = [check_features(label, z) for label, z in zip(names, features, strict=True)]
    check_equal_lengths(names, checked)
    wide = any(z.dtype == torch.float64 for z in checked)
    return [z.double() for z in checked] if wide else checked


def check_probabilities(name: str, p: Tensor) -> Tensor:
    """Return `p` in float32 or wider, or raise `InputError` unless its rows are probabilities."""
    p = check_features(name, p)
    low = float(p.detach().min())
    sums = p.detach().sum(1)
    if low < -SUM_TOLERANCE or float((sums - 1).abs().max()) > SUM_TOLERANCE:
        raise InputError(
            f"{name} has values from {low:.4g} and rows that sum to [{float(sums.min()):.4g}, "
            f"{float(sums.max()):.4g}]; allowed: probabilities (apply softmax to logits)"
        )
    return p
