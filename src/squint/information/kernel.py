"""Gaussian Gram matrices and the named rules for their bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_choice, check_labels, check_number
from squint.information._inputs import check_features

BANDWIDTHS = ("median", "silverman", "neighbours", "delta")
"""The named bandwidth rules; a positive number is a bandwidth of its own."""

ROUNDING = 16
"""Squared distances below this many units of rounding of the squared norms are rounding, and are 0."""

NEIGHBOURS = 10
"""How many nearest rows the `neighbours` rule averages over."""


def squared_distances(z: Tensor) -> Tensor:
    """Return squared Euclidean distances (..., n, n) between the rows of `z` (..., n, features).

    One matrix product of the centred rows: centring, which distances do not see, keeps the cancellation in
    |x|² + |y|² − 2xy harmless. What is left of it for coinciding rows is set to 0, and so is its gradient.
    There is no square root, so gradients are finite everywhere. Autocast is off inside; under TF32 distances
    keep about three digits.
    """
    with torch.autocast(z.device.type, enabled=False):
        centred = z - z.detach().mean(-2, keepdim=True)
        inner = centred @ centred.mT
        norms = inner.diagonal(dim1=-2, dim2=-1)
        sums = norms.unsqueeze(-1) + norms.unsqueeze(-2)
        distances = sums - 2 * inner
        rounding = ROUNDING * torch.finfo(z.dtype).eps * sums.detach()
        return torch.where(distances > rounding, distances, 0.0)


def label_gram(y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the (n, n) delta kernel on labels `y` (n,): 1 where two rows share their class, else 0.

    Raises:
        InputError: `y` does not hold whole numbers of 0 or more in one dimension.
        InputTypeError: it is no tensor.
    """
    if isinstance(y, Tensor) and (y.ndim != 1 or y.numel() == 0):
        raise InputError(f"y has shape {tuple(y.shape)}; allowed: non-empty labels (n,)")
    check_labels(y, len(y) if isinstance(y, Tensor) else 0, name="y")
    return (y.unsqueeze(0) == y.unsqueeze(1)).to(dtype)


def grams(zs: Sequence[Tensor], bandwidth: float | str, y: Tensor | None = None) -> Tensor:
    """Return the Gram matrices (members, n, n) of checked tensors of one dtype; see `gram`."""
    return kernels(all_distances(zs), [z.shape[1] for z in zs], bandwidth, y)


def all_distances(zs: Sequence[Tensor]) -> Tensor:
    """Return the squared distances (members, n, n) of checked tensors of one dtype."""
    if all(z.shape == zs[0].shape for z in zs):
        return squared_distances(torch.stack(list(zs)))
    return torch.stack([squared_distances(z) for z in zs])


def kernels(d2: Tensor, widths: Sequence[int], bandwidth: float | str, y: Tensor | None = None) -> Tensor:
    """Return the Gram matrices (members, n, n) of squared distances `d2` between rows of `widths` features.

    The distances are the dear part, and are the same whether a rule looks at all pairs or, given `y`, at
    those of one class.
    """
    if isinstance(bandwidth, str):
        check_choice("bandwidth", bandwidth, BANDWIDTHS)
    elif isinstance(bandwidth, int | float):
        check_number("bandwidth", bandwidth, 0.0, open_low=True)
    else:
        raise InputTypeError(f"bandwidth must be a number or a word, got {type(bandwidth).__name__}")
    if bandwidth == "delta":
        return (d2 == 0).to(d2.dtype)
    with torch.no_grad():
        if isinstance(bandwidth, str):
            allowed = ~torch.eye(d2.shape[-1], dtype=torch.bool, device=d2.device)
            if y is not None:
                allowed &= y.unsqueeze(0) == y.unsqueeze(1)
            sigma = _sigma(d2.detach(), allowed, bandwidth, widths)
        else:
            sigma = d2.new_full((len(d2),), float(bandwidth))
        # Zero scale stands for rows that coincide: the constant kernel, entropy 0.
        double_square = 2 * sigma.square()
        usable = double_square > torch.finfo(d2.dtype).tiny
        rate = torch.where(usable, 1 / double_square.where(usable, torch.ones_like(sigma)), 0.0)
    return torch.exp(-rate[:, None, None] * d2)


def gram(z: Tensor, bandwidth: float | str = "median", *, y: Tensor | None = None) -> Tensor:
    """Return the (n, n) Gaussian Gram matrix K_ij = exp(−|z_i − z_j|² / 2σ²), differentiable in `z`.

    The bandwidth is detached. Cost: O(n²·features). Features are used as they are, never normalised.

    Args:
        z: (n, features).
        bandwidth: a positive number is σ itself, in units of `z`. Rules: `median` of the distances between
            different rows; `silverman`, (4/(n(f+2)))^(1/(f+4)) times the root mean feature variance
            (Silverman 1986; in wide features it drives K to the identity); `neighbours`, mean distance to the
            10 nearest rows (Yu et al. 2021); `delta`, the limit σ → 0, 1 where rows coincide (no gradient).
        y: labels (n,); with them a rule looks at pairs of the same class only.

    Where a rule finds no distance (rows that coincide, one row, no pair of one class) K is 1 everywhere.

    Raises:
        InputError: `z` not finite or not (n, features); `bandwidth` not positive or unknown; bad `y`.
    """
    z = check_features("z", z)
    if y is not None:
        check_labels(y, z.shape[0], name="y")
    return grams([z], bandwidth, y)[0]


def _sigma(d2: Tensor, allowed: Tensor, rule: str, widths: Sequence[int]) -> Tensor:
    """Return the bandwidth (members,) of each distance matrix from its allowed pairs; 0 if it has none."""
    if rule == "neighbours":
        count = min(NEIGHBOURS, d2.shape[-1])
        nearest = d2.masked_fill(~allowed, math.inf).topk(count, dim=-1, largest=False).values
        found = nearest.isfinite()
        total = nearest.where(found, torch.zeros_like(nearest)).sqrt().sum((-2, -1))
        return total / found.sum((-2, -1)).clamp_min(1)
    pairs = d2[:, allowed.triu(1)]
    if pairs.shape[1] == 0:
        return d2.new_zeros(d2.shape[0])
    if rule == "median":
        # Lower and upper median of squares, so that an even count averages its two middle distances.
        lower = torch.stack([row.median() for row in pairs])
        upper = -torch.stack([row.neg().median() for row in pairs])
        return (lower.sqrt() + upper.sqrt()) / 2
    width = d2.new_tensor(widths)
    deviation = (pairs.mean(1) / (2 * width)).sqrt()
    return deviation * (4 / (d2.shape[-1] * (width + 2))) ** (1 / (width + 4))
