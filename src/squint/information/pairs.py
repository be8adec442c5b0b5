"""Rényi information of all pairs of members at once: the redundancy terms of the training objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from squint._checks import check_labels, check_number
from squint.information._inputs import check_members
from squint.information.kernel import grams, label_gram
from squint.information.renyi import gram_entropy


class PairwiseInformation(NamedTuple):
    """Information between members, in nats.

    Attributes:
        redundancy: (members, members), I_α(Z_i; Z_j).
        conditional: (members, members), I_α(Z_i; Z_j | Y), or None without labels.
    """

    redundancy: Tensor
    conditional: Tensor | None


def pairwise_information(
    features: Sequence[Tensor],
    y: Tensor | None = None,
    *,
    alpha: float = 2.0,
    bandwidth: float | str = "median",
) -> PairwiseInformation:
    """Return the information between every pair of members, as `renyi_mutual_information` gives it.

    Every member's Gram matrix is computed once. At order 2 the joint term of all pairs is one matrix product
    of the squared Gram matrices: ‖K_i ∘ K_j‖²_F = ⟨K_i², K_j²⟩. Differentiable. The diagonal holds a member
    with its own copy. Formula, bias and limits: module `renyi`.

    Args:
        features: one (n, features_m) tensor per member; widths may differ.
        y: labels (n,), whole numbers; with them the conditional matrix is computed too.
        alpha: order, above 0; other orders than 2 take O(members² n³).
        bandwidth: a rule by name or a positive number, see `gram`.

    Raises:
        InputError: an argument is bad (a member named by its place) or lengths differ.
    """
    zs = _checked(features, alpha)
    labels = None if y is None else _pair_matrix(zs, _checked_labels(y, zs), alpha, bandwidth)
    return PairwiseInformation(_pair_matrix(zs, None, alpha, bandwidth), labels)


def redundancy(
    features: Sequence[Tensor], *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return Σ_{i<j} I_α(Z_i; Z_j), a scalar in nats; 0 for one member. Differentiable.

    Arguments, errors and cost as for `pairwise_information`.
    """
    return _pair_matrix(_checked(features, alpha), None, alpha, bandwidth).triu(1).sum()


def conditional_redundancy(
    features: Sequence[Tensor], y: Tensor, *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return Σ_{i<j} I_α(Z_i; Z_j | Y), a scalar in nats; 0 for one member. Differentiable.

    Arguments, errors and cost as for `pairwise_information`; the bandwidth looks at same-class pairs only.
    """
    zs = _checked(features, alpha)
    return _pair_matrix(zs, _checked_labels(y, zs), alpha, bandwidth).triu(1).sum()


def _checked(features: Sequence[Tensor], alpha: float) -> list[Tensor]:
    check_number("alpha", alpha, 0.0, open_low=True)
    zs = check_members(features)
    return zs if alpha == 2 else [z.double() for z in zs]


def _checked_labels(y: Tensor, zs: Sequence[Tensor]) -> Tensor:
    check_labels(y, zs[0].shape[0], name="y")
    return y


def _pair_matrix(zs: Sequence[Tensor], y: Tensor | None, alpha: float, bandwidth: float | str) -> Tensor:
    """Return the (members, members) information matrix, conditional on `y` where it is given."""
    k = grams(zs, bandwidth, y)
    members, n = k.shape[:2]
    if alpha == 2:
        squares = k.square().flatten(1)
        weighted = squares if y is None else squares * label_gram(y, k.dtype).flatten()
        marginal = -weighted.mean(1).log()
        joint = -((weighted @ squares.mT) / n**2).log()
        known = 0.0 if y is None else -label_gram(y, k.dtype).mean().log()
        return marginal.unsqueeze(0) + marginal.unsqueeze(1) - joint - known
    first, second = torch.triu_indices(members, members, device=k.device)
    products = torch.cat([k, k[first] * k[second], torch.ones_like(k[:1])])
    if y is not None:
        products = products * label_gram(y, k.dtype)
    s = gram_entropy(products, alpha=alpha)
    upper = s[first] + s[second] - s[members:-1] - s[-1]
    matrix = k.new_zeros(members, members).index_put((first, second), upper)
    return matrix + matrix.triu(1).mT
