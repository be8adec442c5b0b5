"""Rényi information of all pairs of members at once: the redundancy terms of the training objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from squint._checks import check_labels, check_number
from squint.information._inputs import check_members
from squint.information.kernel import all_distances, grams, kernels, label_gram
from squint.information.renyi import entropies


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

    Every member's distances are computed once, and from them its Gram matrix, or two: given labels a
    bandwidth rule looks at other pairs. At order 2 the joint term of all pairs is one matrix product of the
    squared Gram matrices: ‖K_i ∘ K_j‖²_F = ⟨K_i², K_j²⟩. Differentiable. The diagonal holds a member with
    its own copy. Formula, bias and limits: module `renyi`.

    Args:
        features: one (n, features_m) tensor per member; widths may differ.
        y: labels (n,), whole numbers; with them the conditional matrix is computed too.
        alpha: order, above 0; other orders than 2 take O(members² n³).
        bandwidth: a rule by name or a positive number, see `gram`.

    Raises:
        InputError: an argument is bad (a member named by its place) or lengths differ.
    """
    zs = _checked(features, alpha)
    d2, widths = all_distances(zs), [z.shape[1] for z in zs]
    given = None
    if y is not None:
        y = _checked_labels(y, zs)
        given = _pair_matrix(kernels(d2, widths, bandwidth, y), y, alpha)
    return PairwiseInformation(_pair_matrix(kernels(d2, widths, bandwidth), None, alpha), given)


def redundancy(
    features: Sequence[Tensor], *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return Σ_{i<j} I_α(Z_i; Z_j), a scalar in nats; 0 for one member. Differentiable.

    Arguments, errors and cost as for `pairwise_information`.
    """
    return _pair_matrix(grams(_checked(features, alpha), bandwidth), None, alpha).triu(1).sum()


def conditional_redundancy(
    features: Sequence[Tensor], y: Tensor, *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return Σ_{i<j} I_α(Z_i; Z_j | Y), a scalar in nats; 0 for one member. Differentiable.

    Arguments, errors and cost as for `pairwise_information`; the bandwidth looks at same-class pairs only.
    """
    zs = _checked(features, alpha)
    y = _checked_labels(y, zs)
    return _pair_matrix(grams(zs, bandwidth, y), y, alpha).triu(1).sum()


def _checked(features: Sequence[Tensor], alpha: float) -> list[Tensor]:
    check_number("alpha", alpha, 0.0, open_low=True)
    zs = check_members(features)
    return zs if alpha == 2 else [z.double() for z in zs]


def _checked_labels(y: Tensor, zs: Sequence[Tensor]) -> Tensor:
    check_labels(y, zs[0].shape[0], name="y")
    return y


def _pair_matrix(k: Tensor, y: Tensor | None, alpha: float) -> Tensor:
    """Return the (members, members) information of Gram matrices `k`, conditional on `y` where given."""
    members, n = k.shape[:2]
    labels = None if y is None else label_gram(y, k.dtype)
    if alpha == 2:
        squares = k.square().flatten(1)
        weighted = squares if labels is None else squares * labels.flatten()
        marginal = -weighted.mean(1).log()
        joint = -((weighted @ squares.mT) / n**2).log()
        known = 0.0 if labels is None else -labels.mean().log()
        return marginal.unsqueeze(0) + marginal.unsqueeze(1) - joint - known
    first, second = torch.triu_indices(members, members, device=k.device)
    products = torch.cat([k, k[first] * k[second], torch.ones_like(k[:1])])
    if labels is not None:
        products = products * labels
    s = entropies(products, alpha)
    upper = s[first] + s[second] - s[members:-1] - s[-1]
    matrix = k.new_zeros(members, members).index_put((first, second), upper)
    return matrix + matrix.triu(1).mT
