r"""Plug-in information of soft class assignments, in nats.

The joint table of two members is J = (1/n) Σ p1 p2ᵀ over examples, I = Σ J log(J / (J1 · 1ᵀJ)). It is the
information between two labels drawn independently from the two members' probabilities for the same example.

Cost O(n c1 c2). Bias: the plug-in value of n examples is too high, by (c1 − 1)(c2 − 1)/2n for independent
hard labels (Miller 1955); neither bound otherwise. For soft assignments the second-order term of the
expansion is used, (1/2n) [Σ Var(w_ij)/J_ij − Σ Var(p1_i)/J_i. − Σ Var(p2_j)/J_.j] with w = p1 p2ᵀ, which for
hard labels is the Miller–Madow correction exactly. Corrected values can be negative and are not clamped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from squint._checks import InputError, InputTypeError, check_choice, check_labels, check_number
from squint.information._inputs import check_equal_lengths, check_probabilities

CORRECTIONS = ("none", "miller_madow")


def joint_table(p1: Tensor, p2: Tensor) -> Tensor:
    """Return the joint table (classes_1, classes_2) of two members' probabilities, (1/n) Σ p1 p2ᵀ.

    Args:
        p1: (n, classes_1), rows sum to one.
        p2: (n, classes_2), rows sum to one.

    Raises:
        InputError: rows that are no probabilities, NaN, or lengths that differ.
    """
    p1, p2 = _check_pair(p1, p2)
    return p1.mT @ p2 / p1.shape[0]


def table_mutual_information(table: Tensor) -> Tensor:
    """Return the Shannon mutual information (...) in nats of joint tables (..., c1, c2), normalised inside.

    Differentiable; empty cells add nothing and pass no gradient.

    Args:
        table: non-negative weights, not all zero.

    Raises:
        InputError: the table is not finite and non-negative, or is zero.
        InputTypeError: it is no tensor.
    """
    if not isinstance(table, Tensor):
        raise InputTypeError(f"table must be a torch.Tensor, got {type(table).__name__}")
    if table.ndim < 2 or not bool(torch.isfinite(table).all()) or bool((table < 0).any()):
        raise InputError(f"table of shape {tuple(table.shape)}; allowed: finite, 0 or more, (..., c1, c2)")
    total = table.sum((-2, -1), keepdim=True)
    if not bool((total > 0).all()):
        raise InputError("table is all zero; allowed: a positive sum")
    joint = table / total
    rows, columns = joint.sum(-1, keepdim=True), joint.sum(-2, keepdim=True)
    return (joint * (_safe_log(joint) - _safe_log(rows) - _safe_log(columns))).sum((-2, -1))


def soft_label_mutual_information(p1: Tensor, p2: Tensor, *, correction: str = "none") -> Tensor:
    """Return the plug-in information I(Ŷ_1; Ŷ_2) of two members' soft labels, a scalar in nats.

    Differentiable in both. Formula, cost and bias: see this module. One example gives 0; a class that no
    member predicts adds nothing.

    Args:
        p1: (n, classes_1) probabilities.
        p2: (n, classes_2) probabilities.
        correction: `none` (the plug-in value, 0 or more) or `miller_madow`.

    Raises:
        InputError: rows that are no probabilities, NaN, lengths that differ, an unknown correction.
    """
    check_choice("correction", correction, CORRECTIONS)
    p1, p2 = _check_pair(p1, p2)
    weights = p1.new_ones(1, p1.shape[0])
    return _plug_in(p1, p2, weights, correction)


def soft_label_conditional_mutual_information(
    p1: Tensor, p2: Tensor, y: Tensor, *, correction: str = "none"
) -> Tensor:
    """Return the plug-in information I(Ŷ_1; Ŷ_2 | Y) = Σ_c (n_c/n) I(Ŷ_1; Ŷ_2 | Y = c), a scalar in nats.

    Differentiable; its bias adds up over classes, each with n_c examples. Absent classes are no matter.

    Args:
        p1: (n, classes_1) probabilities.
        p2: (n, classes_2) probabilities.
        y: labels (n,), whole numbers.
        correction: `none` or `miller_madow`, applied within each class.

    Raises:
        InputError: an argument is bad (named) or lengths differ.
    """
    check_choice("correction", correction, CORRECTIONS)
    p1, p2 = _check_pair(p1, p2)
    check_labels(y, p1.shape[0], name="y")
    classes = torch.unique(y)
    return _plug_in(p1, p2, (classes.unsqueeze(1) == y).to(p1.dtype), correction)


class JointTable(nn.Module):
    """An exponentially averaged joint table, for minibatches too small for one of their own.

    After update t the table is J_t = decay · J_{t−1} + (1 − decay) · batch, divided by 1 − decay^t so that
    the start is not biased to zero. Its value is that average; its gradient is the whole batch's, not the
    share 1 − decay: the information's derivative, log(J / (J1 · 1ᵀJ)), is then taken at the average, and its
    size does not depend on `decay`. The state is two buffers, saved with a `state_dict`; every call updates
    it.

    Attributes:
        table: (classes_1, classes_2), the running sum before division.
        updates: how many batches it has seen.
    """

    table: Tensor
    updates: Tensor

    def __init__(self, classes_1: int, classes_2: int | None = None, *, decay: float = 0.9) -> None:
        super().__init__()
        check_number("classes_1", classes_1, 1, whole=True)
        columns = classes_1 if classes_2 is None else check_number("classes_2", classes_2, 1, whole=True)
        self.decay = check_number("decay", decay, 0.0, 1.0)
        if decay == 1:
            raise InputError("decay is 1; allowed: a number in [0, 1)")
        self.register_buffer("table", torch.zeros(classes_1, columns))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def update(self, p1: Tensor, p2: Tensor) -> Tensor:
        """Return the averaged table after this batch of probabilities (n, classes_1), (n, classes_2).

        Raises:
            InputError: rows that are no probabilities, or classes other than the table's.
        """
        batch = joint_table(p1, p2)
        if batch.shape != self.table.shape:
            raise InputError(
                f"p1 and p2 have {tuple(batch.shape)} classes; allowed: {tuple(self.table.shape)}"
            )
        with torch.no_grad():
            self.table.mul_(self.decay).add_(batch.detach(), alpha=1 - self.decay)
            self.updates.add_(1)
        average = self.table.to(batch.dtype) / (1 - self.decay ** int(self.updates))
        return average + (batch - batch.detach())

    def forward(self, p1: Tensor, p2: Tensor) -> Tensor:
        """Return the information of the table that `update` returns, a scalar in nats."""
        return table_mutual_information(self.update(p1, p2))


def _check_pair(p1: Tensor, p2: Tensor) -> tuple[Tensor, Tensor]:
    p1, p2 = check_probabilities("p1", p1), check_probabilities("p2", p2)
    check_equal_lengths(("p1", "p2"), (p1, p2))
    dtype = torch.promote_types(p1.dtype, p2.dtype)
    return p1.to(dtype), p2.to(dtype)


def _safe_log(p: Tensor) -> Tensor:
    """Return log p, and 0 with gradient 0 where p is 0: its factor is 0 there."""
    return p.where(p > 0, torch.ones_like(p)).log()


def _plug_in(p1: Tensor, p2: Tensor, groups: Tensor, correction: str) -> Tensor:
    """Return Σ_g (n_g/n) I_g for examples in groups (g, n) of ones and zeros, none of them empty."""
    p1, p2 = p1.clamp_min(0), p2.clamp_min(0)
    count = groups.sum(1)
    table = torch.einsum("gn,ni,nj->gij", groups, p1, p2) / count[:, None, None]
    value = (count * table_mutual_information(table)).sum() / p1.shape[0]
    if correction == "none":
        return value
    squares = torch.einsum("gn,ni,nj->gij", groups, p1.square(), p2.square()) / count[:, None, None]
    excess = _spread(squares, table)
    for p in (p1, p2):
        means, mean_squares = (groups @ p) / count[:, None], (groups @ p.square()) / count[:, None]
        excess = excess - _spread(mean_squares, means)
    return value - excess / (2 * p1.shape[0])


def _spread(square: Tensor, mean: Tensor) -> Tensor:
    """Return Σ variance over mean, E[w²]/E[w] − E[w]; cells that are always 0 add 0."""
    seen = mean > 0
    return torch.where(seen, square / mean.where(seen, torch.ones_like(mean)) - mean, 0.0).sum()
