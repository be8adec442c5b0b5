"""Nearest-neighbour mutual information (Kraskov, Stögbauer and Grassberger 2004), for reports."""

from __future__ import annotations

import torch
from torch import Tensor

from squint._checks import InputError, check_number
from squint.information._inputs import check_pair

CHUNK = 512
"""Rows whose distances to all others are held at once."""


@torch.no_grad()
def ksg(z1: Tensor, z2: Tensor, *, k: int = 3, variant: int = 1) -> Tensor:
    """Return the KSG estimate of I(Z_1; Z_2), a scalar in nats. Not differentiable.

    Variant 1: ψ(k) + ψ(n) − ⟨ψ(n_1 + 1) + ψ(n_2 + 1)⟩ with n_m the rows strictly nearer in Z_m than the k-th
    neighbour in the joint space (equation 8). Variant 2: ψ(k) − 1/k + ψ(n) − ⟨ψ(n_1) + ψ(n_2)⟩ with the sides
    of the rectangle that holds the k neighbours (equation 9). Maximum norms throughout.

    Rows with k or more exact copies use the discrete form ψ(k̃) + ψ(n) − ψ(n_1) − ψ(n_2), copies counted with
    themselves (Gao et al. 2017); a constant variable gives 0.

    Neither bound. Nearly unbiased for weak dependence in few dimensions; too low for strong dependence and
    more than a few dimensions (n grows exponentially with the information). Can be slightly negative. Cost
    O(n² (d1 + d2)), exact, 512 rows at a time, in float64. The joint norm compares distances in z1 with those
    in z2, so that each variable is first divided by its standard deviation (one number for all columns): its
    units do not matter, those of its columns against one another do.

    Args:
        z1: (n, d1).
        z2: (n, d2).
        k: neighbours; more lower the variance and raise the bias.
        variant: 1 or 2.

    Raises:
        InputError: k not in 1..n−1, another variant, NaN, lengths that differ.
    """
    z1, z2 = check_pair(z1, z2, minimum=2)
    n = z1.shape[0]
    check_number("k", k, 1, n - 1, whole=True)
    if variant not in (1, 2):
        raise InputError(f"variant is {variant!r}; allowed: 1 or 2")
    x, y = z1.double(), z2.double()
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return z1.new_zeros(())
    units, parts = (_deviation(x), _deviation(y)), [slice(i, i + CHUNK) for i in range(0, n, CHUNK)]
    terms = torch.cat([_local_terms(x, y, units, rows, k, variant) for rows in parts])
    return (terms.mean() + _digamma(terms.new_tensor(n))).to(z1.dtype)


def _deviation(x: Tensor) -> Tensor:
    """Return the root mean square of the centred values, a scalar."""
    # The largest deviation goes first: squares of very small values vanish.
    centred = x - x.mean(0)
    largest = centred.abs().max()
    return largest * (centred / largest).square().mean().sqrt()


def _local_terms(
    x: Tensor, y: Tensor, units: tuple[Tensor, Tensor], rows: slice, k: int, variant: int
) -> Tensor:
    """Return each row's term of the average, without ψ(n); distances are in `units` of each variable."""
    # Distances that are equal stay so: divided values would fall apart by rounding.
    dx = torch.cdist(x[rows], x, p=float("inf")) / units[0]
    dy = torch.cdist(y[rows], y, p=float("inf")) / units[1]
    joint = torch.maximum(dx, dy)
    # A row is its own neighbour at distance 0, so counts include it and the k-th other is number k + 1.
    nearest = joint.topk(k + 1, dim=1, largest=False)
    radius = nearest.values[:, -1:]
    order = _digamma(radius.new_tensor(k))
    if variant == 1:
        counts = [(d < radius).sum(1).clamp_min(1) for d in (dx, dy)]
    else:
        sides = [d.gather(1, nearest.indices).amax(1, keepdim=True) for d in (dx, dy)]
        counts = [(d <= side).sum(1) - 1 for d, side in zip((dx, dy), sides, strict=True)]
        order = order - 1 / k
    spaced = order - _digamma(counts[0]) - _digamma(counts[1])
    copies = _digamma((joint == 0).sum(1))
    tied = copies - _digamma((dx == 0).sum(1)) - _digamma((dy == 0).sum(1))
    return torch.where(radius.squeeze(1) == 0, tied, spaced)


def _digamma(count: Tensor) -> Tensor:
    value: Tensor = torch.special.digamma(count.double())
    return value
