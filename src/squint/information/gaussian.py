"""Mutual information of jointly Gaussian variables from log-determinants."""

from __future__ import annotations

import torch
from torch import Tensor

from squint._checks import InputError, check_choice, check_number
from squint.information._inputs import check_pair

CORRECTIONS = ("none", "wishart")


def gaussian_mutual_information(
    z1: Tensor, z2: Tensor, *, correction: str = "wishart", ridge: float = 0.0
) -> Tensor:
    """Return ½ [log det C_1 + log det C_2 − log det C] of the sample correlations, a scalar in nats.

    Equals −½ log det(1 − ρ²) over the canonical correlations ρ. Differentiable. For Gaussian data the plug-in
    value is too high by about d1·d2/2n; `wishart` subtracts the exact bias, ½ Σ over blocks of ±ψ((n − i)/2),
    i = 1..d (Goodman 1963), so values can be slightly negative. For other data whose marginals are Gaussian
    it is a lower bound, in general it is neither. Cost O(n d² + d³), in float64.

    Limits: constant features add nothing. A direction of one variable that the other determines counts as
    1 − ρ² at the rounding of float64, about 16 nats, instead of infinity.

    Args:
        z1: (n, d1).
        z2: (n, d2).
        correction: `wishart` or `none`.
        ridge: added to the correlations' diagonal; it shrinks the value, allows n ≤ d1 + d2 + 1, and leaves
            the correction out, which does not hold then.

    Raises:
        InputError: fewer than d1 + d2 + 2 rows without a ridge, NaN, lengths that differ.
    """
    check_choice("correction", correction, CORRECTIONS)
    check_number("ridge", ridge, 0.0)
    z1, z2 = check_pair(z1, z2, minimum=2)
    n = z1.shape[0]
    needed = z1.shape[1] + z2.shape[1] + 2
    if n < needed and ridge == 0:
        raise InputError(f"z1 and z2 have {n} rows; allowed: {needed} or more for their features, or a ridge")
    x1, x2 = _standardise(z1.double()), _standardise(z2.double())
    value = (_logdet(x1, ridge) + _logdet(x2, ridge) - _logdet(torch.cat([x1, x2], 1), ridge)) / 2
    if correction == "wishart" and ridge == 0:
        d1, d2 = (int((x.detach() != 0).any(0).sum()) for x in (x1, x2))
        value = value - (_log_wishart(n, d1) + _log_wishart(n, d2) - _log_wishart(n, d1 + d2)) / 2
    return value.to(z1.dtype)


def _standardise(x: Tensor) -> Tensor:
    """Return centred columns of unit length; constant columns become exactly 0."""
    centred = x - x.mean(0)
    square = centred.square().sum(0)
    # Rounding of the mean leaves about eps·|x| of a constant column.
    varies = square.detach() > (8 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().sum(0)
    length = square.where(varies, torch.ones_like(square)).sqrt()
    return torch.where(varies, centred / length, 0.0)


def _logdet(x: Tensor, ridge: float) -> Tensor:
    """Return log det of the correlation matrix of standardised columns, each eigenvalue at least rounding."""
    constant = (x.detach() == 0).all(0)
    matrix = x.mT @ x + torch.diag(constant.to(x.dtype) + ridge)
    floor = x.shape[1] * torch.finfo(x.dtype).eps
    values: Tensor = torch.linalg.eigvalsh(matrix)
    return values.clamp_min(floor).log().sum()


def _log_wishart(n: int, d: int) -> float:
    """Return E[log det] of a d-dimensional sample covariance of n rows, up to terms linear in d."""
    i = torch.arange(1, d + 1, dtype=torch.float64)
    return float(torch.special.digamma((n - i) / 2).sum())
