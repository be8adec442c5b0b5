r"""Matrix-based Rényi information of order α (Sánchez Giraldo et al. 2015; Yu et al. 2020), in nats.

With a Gram matrix K and A = K / tr K, S_α(A) = log(tr A^α) / (1 − α), and α → 1 gives −tr(A log A). The joint
entropy of several variables is that of the elementwise product of their Gram matrices. Order 2 needs no
eigenvalues: S_2(A) = −log ‖A‖²_F.

Cost for n rows and f features: O(n²f), plus O(n³) eigenvalues for α ≠ 2, which run in float64.

Bias: values depend on the kernel, and estimate Shannon's quantity only for the delta kernel and α = 1, where
they equal the plug-in value exactly. For a fixed kernel ‖A‖²_F of n rows exceeds its limit q by (1 − q)/n on
average, so S_2 ≤ log n is too low, a joint entropy (smaller q) more than its marginals, and order-2
information too high: little in few dimensions, by several times its size in 64 dimensions at n = 32. Neither
a lower nor an upper bound on Shannon information. Order-2 information can be slightly negative and has no
chain rule; nothing is clamped.

Limits instead of errors: one row, and rows that coincide, have entropy and information 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_labels, check_number
from squint.information._inputs import check_features, check_members, check_pair
from squint.information.kernel import grams, label_gram

SHANNON = 1e-6
"""Orders this close to 1 use the limit −Σ λ log λ; the quotient would lose its digits to cancellation."""

SYMMETRY = 1e-4
"""How far entries may be from their mirror images, as a share of the largest diagonal entry."""


def gram_entropy(k: Tensor, *, alpha: float = 2.0) -> Tensor:
    """Return the order-α entropy (...) in nats of Gram matrices `k` (..., n, n), trace-normalised inside.

    Differentiable. For α ≠ 2, eigenvalues within rounding of 0 count as 0.

    Args:
        k: symmetric positive semi-definite matrices with a positive trace.
        alpha: order, above 0.

    Raises:
        InputError: `alpha` is not a finite positive number; `k` is not square, symmetric and finite with a
            diagonal of 0 or more, not all zero.
    """
    check_number("alpha", alpha, 0.0, open_low=True)
    k = _check_gram(k)
    return entropies(k if alpha == 2 else k.double(), alpha).to(k.dtype)


def entropies(k: Tensor, alpha: float) -> Tensor:
    """Return what `gram_entropy` does, of matrices that are known to be Gram matrices."""
    scale = k.diagonal(dim1=-2, dim2=-1).mean(-1)
    if alpha == 2:
        return 2 * scale.log() - k.square().mean((-2, -1)).log()
    n = k.shape[-1]
    values: Tensor = torch.linalg.eigvalsh(k / (n * scale)[..., None, None])
    positive = values > n * torch.finfo(k.dtype).eps * values.detach().amax(-1, keepdim=True)
    logs = values.where(positive, torch.ones_like(values)).log()
    if abs(alpha - 1) < SHANNON:
        return -(values * logs).sum(-1)
    powers = torch.where(positive, (alpha * logs).exp(), 0.0)
    return powers.sum(-1).log() / (1 - alpha)


def _check_gram(k: Tensor) -> Tensor:
    if not isinstance(k, Tensor):
        raise InputTypeError(f"k must be a torch.Tensor, got {type(k).__name__}")
    if not k.is_floating_point():
        raise InputError(f"k has dtype {k.dtype}; allowed: floating point")
    if k.ndim < 2 or k.shape[-1] != k.shape[-2] or k.numel() == 0:
        raise InputError(f"k has shape {tuple(k.shape)}; allowed: non-empty square matrices (..., n, n)")
    k = k if k.dtype == torch.float64 else k.float()
    seen = k.detach()
    if not bool(torch.isfinite(seen).all()):
        raise InputError("k contains NaN or infinity; allowed: finite values")
    diagonal = seen.diagonal(dim1=-2, dim2=-1)
    largest = diagonal.amax(-1)
    if bool((diagonal < 0).any()) or not bool((largest > 0).all()):
        low, high = float(diagonal.min()), float(diagonal.max())
        raise InputError(f"k has diagonals in [{low:g}, {high:g}]; allowed: 0 or more, not all zero")
    if bool(((seen - seen.mT).abs().amax((-2, -1)) > SYMMETRY * largest).any()):
        raise InputError("k is not symmetric; allowed: Gram matrices, which are")
    return k


def renyi_entropy(z: Tensor, *, alpha: float = 2.0, bandwidth: float | str = "median") -> Tensor:
    """Return the entropy S_α(Z) of the rows of `z`, a scalar in nats from 0 to log n. Differentiable.

    Formula, cost and bias: see this module; bandwidth: see `gram`.

    Args:
        z: (n, features).
        alpha: order, above 0.
        bandwidth: a rule by name or a positive number.

    Raises:
        InputError: `z` not finite or not (n, features), `alpha` or `bandwidth` not positive.
    """
    (z,) = _at_order([check_features("z", z)], alpha)
    return entropies(grams([z], bandwidth)[0], alpha)


def renyi_joint_entropy(
    zs: Sequence[Tensor], *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return the joint entropy S_α(Z_1, …, Z_M) = S_α(A_1 ∘ … ∘ A_M / tr), a scalar in nats.

    Differentiable; at least every marginal entropy and at most log n.

    Args:
        zs: tensors (n, features_m); widths may differ.
        alpha: order, above 0.
        bandwidth: a rule by name or a positive number; a rule is applied to each variable.

    Raises:
        InputError: a tensor is bad (named by its place) or lengths differ.
    """
    zs = _at_order(check_members(zs, "zs"), alpha)
    return entropies(grams(zs, bandwidth).prod(0), alpha)


def renyi_mutual_information(
    z1: Tensor, z2: Tensor, *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return I_α(Z_1; Z_2) = S_α(A) + S_α(B) − S_α(A ∘ B / tr), a scalar in nats. Differentiable.

    Neither bound of Shannon information; can be slightly negative for α ≠ 1. Formula, cost, bias: this
    module.

    Args:
        z1: (n, features_1).
        z2: (n, features_2), row i seen together with row i of `z1`.
        alpha: order, above 0.
        bandwidth: a rule by name or a positive number, for each variable.

    Raises:
        InputError: an argument is bad (named) or the lengths differ.
    """
    z1, z2 = _at_order(check_pair(z1, z2), alpha)
    a, b = grams([z1, z2], bandwidth)
    s = entropies(torch.stack([a, b, a * b]), alpha)
    return s[0] + s[1] - s[2]


def renyi_conditional_mutual_information(
    z1: Tensor, z2: Tensor, y: Tensor, *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return I_α(Z_1; Z_2 | Y) = S(A∘K_Y) + S(B∘K_Y) − S(A∘B∘K_Y) − S(K_Y), a scalar in nats.

    Every product is trace-normalised; K_Y is the delta kernel on labels. A bandwidth rule looks at pairs of
    the same class only: with separated classes the distances between classes would set the scale, and the
    term and its gradient would vanish. Differentiable. Without a pair of one class (every label different,
    one row) the value is 0. Classes that do not occur are no matter.

    Args:
        z1: (n, features_1).
        z2: (n, features_2).
        y: labels (n,), whole numbers.
        alpha: order, above 0.
        bandwidth: a rule by name or a positive number, for each variable.

    Raises:
        InputError: an argument is bad (named) or the lengths differ.
    """
    z1, z2 = _at_order(check_pair(z1, z2), alpha)
    return _conditional_total_correlation([z1, z2], y, alpha, bandwidth)


def renyi_total_correlation(
    zs: Sequence[Tensor], *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return TC_α(Z_1, …, Z_M) = Σ_m S_α(A_m) − S_α(A_1 ∘ … ∘ A_M / tr), a scalar in nats (Yu et al. 2020).

    Differentiable; 0 for one variable, mutual information for two.

    Args:
        zs: tensors (n, features_m); widths may differ.
        alpha: order, above 0.
        bandwidth: a rule by name or a positive number, for each variable.

    Raises:
        InputError: a tensor is bad (named by its place) or lengths differ.
    """
    zs = _at_order(check_members(zs, "zs"), alpha)
    k = grams(zs, bandwidth)
    s = entropies(torch.cat([k, k.prod(0, keepdim=True)]), alpha)
    return s[:-1].sum() - s[-1]


def renyi_conditional_total_correlation(
    zs: Sequence[Tensor], y: Tensor, *, alpha: float = 2.0, bandwidth: float | str = "median"
) -> Tensor:
    """Return TC_α(Z | Y) = Σ_m S(A_m∘K_Y) − S(A_1∘…∘A_M∘K_Y) − (M − 1) S(K_Y), a scalar in nats.

    Differentiable; the conditional mutual information for two variables, with the same same-class bandwidth.

    Args:
        zs: tensors (n, features_m); widths may differ.
        y: labels (n,), whole numbers.
        alpha: order, above 0.
        bandwidth: a rule by name or a positive number, for each variable.

    Raises:
        InputError: an argument is bad (named) or lengths differ.
    """
    return _conditional_total_correlation(_at_order(check_members(zs, "zs"), alpha), y, alpha, bandwidth)


def _conditional_total_correlation(
    zs: Sequence[Tensor], y: Tensor, alpha: float, bandwidth: float | str
) -> Tensor:
    check_labels(y, zs[0].shape[0], name="y")
    k = grams(zs, bandwidth, y)
    labels = label_gram(y, k.dtype)
    products = torch.cat([k * labels, (k.prod(0) * labels).unsqueeze(0), labels.unsqueeze(0)])
    s = entropies(products, alpha)
    return s[:-2].sum() - s[-2] - (len(zs) - 1) * s[-1]


def _at_order(zs: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """Return the tensors in the precision that the order needs: eigenvalues want float64."""
    check_number("alpha", alpha, 0.0, open_low=True)
    return list(zs) if alpha == 2 else [z.double() for z in zs]
