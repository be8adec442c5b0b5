"""Matrix-based Rényi information against closed forms, exact enumeration and its own limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from squint._checks import InputError, InputTypeError
from squint.information import (
    gram_entropy,
    joint_table,
    renyi_conditional_mutual_information,
    renyi_conditional_total_correlation,
    renyi_entropy,
    renyi_joint_entropy,
    renyi_mutual_information,
    renyi_total_correlation,
    table_mutual_information,
)

ORDERS = [0.5, 1.0, 1.01, 2.0, 3.5]


def rows(n: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(n, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def codes(values: Tensor) -> Tensor:
    return one_hot(values).double()


@pytest.mark.parametrize("alpha", ORDERS)
def test_constant_is_zero_and_orthogonal_is_log_n(alpha: float) -> None:
    assert abs(float(renyi_entropy(torch.full((20, 3), 0.3), alpha=alpha))) < 1e-7
    orthogonal = renyi_entropy(torch.eye(20), alpha=alpha, bandwidth=0.05)
    assert float(orthogonal) == pytest.approx(math.log(20), abs=1e-6)


def test_median_bandwidth_on_orthonormal_rows_by_hand() -> None:
    # Every distance is the bandwidth, so K is exp(−1/2) off the diagonal.
    expected = -math.log(1 / 8 + 7 / 8 * math.exp(-1))
    assert float(renyi_entropy(torch.eye(8, dtype=torch.float64))) == pytest.approx(expected, abs=1e-12)


def test_order_two_is_the_limit_of_the_eigenvalue_form() -> None:
    z = rows(30, 3)
    near = (renyi_entropy(z, alpha=2 + 1e-7) + renyi_entropy(z, alpha=2 - 1e-7)) / 2
    assert float(renyi_entropy(z)) == pytest.approx(float(near), abs=1e-8)


def test_order_one_is_the_limit_from_both_sides() -> None:
    z = rows(30, 3)
    at_one = float(renyi_entropy(z, alpha=1.0))
    below, above = (float(renyi_entropy(z, alpha=1 + step)) for step in (-1e-5, 1e-5))
    assert above < at_one < below  # entropies fall with their order
    assert (above + below) / 2 == pytest.approx(at_one, abs=1e-8)


@pytest.mark.parametrize("alpha", ORDERS)
def test_delta_kernel_gives_the_renyi_entropy_of_class_shares(alpha: float) -> None:
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    shannon = -(p * p.log()).sum()
    expected = shannon if alpha == 1 else (p**alpha).sum().log() / (1 - alpha)
    assert float(renyi_entropy(codes(y), alpha=alpha, bandwidth="delta")) == pytest.approx(
        float(expected), abs=1e-12
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_delta_kernel_at_order_one_is_the_plug_in_value(pairs: list[tuple[int, int]]) -> None:
    first, second = (codes(torch.tensor(column)) for column in zip(*pairs, strict=True))
    expected = float(table_mutual_information(joint_table(first, second)))
    for bandwidth in ("delta", 1e-3):
        value = renyi_mutual_information(first, second, alpha=1.0, bandwidth=bandwidth)
        assert float(value) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("dimensions", [1, 4, 32])
def test_order_two_gaussian_closed_form(dimensions: int) -> None:
    """E k² of a Gaussian pair is known, and so is E‖A‖² at every n: 1/n + (1 − 1/n) E k²."""
    n, repeats, rho, sigma = 32, 100, 0.8, 2.0 * math.sqrt(dimensions)
    t = 1 / sigma**2
    single = (1 + 4 * t) ** (-dimensions / 2)
    joint = ((1 + 4 * t) ** 2 - (4 * t * rho) ** 2) ** (-dimensions / 2)
    generator = torch.Generator().manual_seed(5)
    values = torch.empty(repeats, 2, dtype=torch.float64)
    for index in range(repeats):
        a, b = torch.randn(2, n, dimensions, dtype=torch.float64, generator=generator)
        b = rho * a + math.sqrt(1 - rho**2) * b
        alone = renyi_entropy(a, bandwidth=sigma)
        both = renyi_joint_entropy([a, b], bandwidth=sigma)
        values[index] = torch.exp(-torch.stack([alone, both]))
    expected = 1 / n + (1 - 1 / n) * torch.tensor([single, joint], dtype=torch.float64)
    error = values.std(0) / math.sqrt(repeats)
    assert bool(((values.mean(0) - expected).abs() < 4 * error).all())


def enumerated() -> tuple[list[Tensor], Tensor]:
    """Return three binary members and a binary label with an arbitrary joint law, as repeated rows."""
    counts = torch.tensor([7, 1, 2, 4, 1, 3, 2, 5, 2, 6, 1, 1, 3, 2, 4, 9])
    state = torch.arange(16).repeat_interleave(counts)
    return [codes((state >> bit) & 1) for bit in range(3)], (state >> 3) & 1


def test_browns_identity_on_three_binary_members() -> None:
    members, y = enumerated()
    exact = {"alpha": 1.0, "bandwidth": "delta"}

    def with_label(z: Tensor) -> Tensor:
        return renyi_mutual_information(z, codes(y), alpha=1.0, bandwidth="delta")

    together = with_label(torch.cat(members, 1))
    accuracy = sum(float(with_label(z)) for z in members)
    shared = renyi_total_correlation(members, **exact)  # type: ignore[arg-type]
    given_label = renyi_conditional_total_correlation(members, y, **exact)  # type: ignore[arg-type]
    assert float(together) == pytest.approx(accuracy - float(shared) + float(given_label), abs=1e-12)
    assert float(shared) > 0.01
    assert float(given_label) > 0.01


def test_chain_rule_on_binary_members() -> None:
    (a, b, c), y = enumerated()
    z_class = a.argmax(1)

    def information(p: Tensor, q: Tensor) -> float:
        return float(renyi_mutual_information(p, q, alpha=1.0, bandwidth="delta"))

    conditional = renyi_conditional_mutual_information(b, c, z_class, alpha=1.0, bandwidth="delta")
    assert information(torch.cat([a, b], 1), c) == pytest.approx(
        information(a, c) + float(conditional), abs=1e-12
    )
    by_class = 0.0
    for value in (0, 1):
        rows_of = z_class == value
        by_class += float(rows_of.double().mean()) * information(b[rows_of], c[rows_of])
    assert float(conditional) == pytest.approx(by_class, abs=1e-12)
    assert y.shape == z_class.shape


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5])
def test_total_correlation_of_two_is_mutual_information(alpha: float) -> None:
    a, b, y = rows(25, 3), rows(25, 5, seed=1), torch.arange(25) % 4
    pair = renyi_mutual_information(a, b, alpha=alpha)
    assert float(renyi_total_correlation([a, b], alpha=alpha)) == pytest.approx(float(pair), abs=1e-12)
    known = renyi_conditional_mutual_information(a, b, y, alpha=alpha)
    total = renyi_conditional_total_correlation([a, b], y, alpha=alpha)
    assert float(total) == pytest.approx(float(known), abs=1e-12)
    assert abs(float(renyi_total_correlation([a], alpha=alpha))) < 1e-12


def test_separated_classes_leave_the_conditional_term_as_it_is() -> None:
    y = torch.arange(60) % 3
    a = rows(60, 2).requires_grad_()
    b = (a + 0.3 * rows(60, 2, seed=1)).detach()
    shift = 1e3 * y.unsqueeze(1)
    near, apart = (renyi_conditional_mutual_information(a + s, b + s, y) for s in (0 * shift, shift))
    assert near.item() == pytest.approx(apart.item(), abs=1e-8)
    assert near.item() > 0.1
    (gradient,) = torch.autograd.grad(apart, a)
    assert float(gradient.abs().max()) > 1e-4


def test_one_class_makes_conditional_and_plain_information_equal() -> None:
    a, b, y = rows(20, 2), rows(20, 2, seed=1), torch.full((20,), 7)
    plain = renyi_mutual_information(a, b)
    assert float(renyi_conditional_mutual_information(a, b, y)) == pytest.approx(float(plain), abs=1e-12)


ESTIMATORS: list[Callable[[Tensor, float], Tensor]] = [
    lambda z, alpha: renyi_entropy(z, alpha=alpha),
    lambda z, alpha: renyi_joint_entropy([z, z.square()], alpha=alpha),
    lambda z, alpha: renyi_mutual_information(z, z.square(), alpha=alpha),
    lambda z, alpha: renyi_conditional_mutual_information(
        z, z.square(), torch.arange(z.shape[0]) // 3, alpha=alpha
    ),
    lambda z, alpha: renyi_conditional_mutual_information(z, z, torch.arange(z.shape[0]), alpha=alpha),
    lambda z, alpha: renyi_total_correlation([z, z, z], alpha=alpha),
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("alpha", ORDERS)
@pytest.mark.parametrize("case", ["one row", "constant", "repeated rows", "outlier", "huge", "tiny"])
def test_values_and_gradients_are_finite_everywhere(
    estimator: Callable[[Tensor, float], Tensor], alpha: float, case: str
) -> None:
    z = rows(8, 3).float()
    z = {
        "one row": z[:1],
        "constant": torch.full((8, 3), 0.1),
        "repeated rows": z[torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])],
        "outlier": torch.cat([torch.zeros(7, 3), torch.full((1, 3), 1e4)]),
        "huge": z * 1e8,
        "tiny": z * 1e-15,
    }[case].requires_grad_()
    value = estimator(z, alpha)
    (gradient,) = torch.autograd.grad(value, z)
    assert math.isfinite(value.item())
    assert bool(torch.isfinite(gradient).all())
    if case in ("one row", "constant"):
        assert abs(value.item()) < 1e-6
        assert float(gradient.abs().max()) == 0


def test_no_pair_of_one_class_is_information_zero() -> None:
    a, b = rows(9, 2), rows(9, 2, seed=1)
    assert abs(float(renyi_conditional_mutual_information(a, b, torch.arange(9)))) < 1e-12


@pytest.mark.parametrize("alpha", ORDERS)
def test_gradients_match_differences(alpha: float) -> None:
    z = rows(7, 3).requires_grad_()
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1])

    def value(x: Tensor) -> Tensor:
        conditional = renyi_conditional_mutual_information(x, x.sin(), y, alpha=alpha, bandwidth=1.2)
        return conditional + renyi_mutual_information(x, x.cos(), alpha=alpha, bandwidth=0.9)

    assert torch.autograd.gradcheck(value, z)


@given(st.integers(1, 12), st.integers(1, 4), st.floats(0.1, 6.0), st.integers(0, 10**6))
def test_entropies_lie_in_range_and_grow_with_variables(n: int, width: int, alpha: float, seed: int) -> None:
    a, b = rows(n, width, seed), rows(n, width, seed + 1)
    alone, both = renyi_entropy(a, alpha=alpha), renyi_joint_entropy([a, b], alpha=alpha)
    assert -1e-9 <= float(alone) <= float(both) + 1e-9
    assert float(both) <= math.log(n) + 1e-9


def test_gram_entropy_normalises_and_takes_batches() -> None:
    k = rows(6, 2) @ rows(6, 2).mT
    batch = gram_entropy(torch.stack([k, 5 * k]), alpha=1.0)
    values = torch.linalg.eigvalsh(k / k.trace()).clamp_min(1e-300)
    assert batch.tolist() == pytest.approx([-float((values * values.log()).sum())] * 2, abs=1e-9)
    assert gram_entropy(torch.stack([k, 5 * k])).tolist() == pytest.approx(
        [-math.log(float((k / k.trace()).square().sum()))] * 2
    )


@pytest.mark.parametrize("alpha", [1 + 2e-6, 1.0001, 1.01, 3.0])
def test_matrices_in_float32_lose_no_digits_to_the_order(alpha: float) -> None:
    k = (-torch.cdist(rows(64, 3), rows(64, 3)).square() / 4).exp().float()
    assert float(gram_entropy(k, alpha=alpha)) == pytest.approx(float(gram_entropy(k.double(), alpha=alpha)))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_bad_orders_are_named(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha is"):
        renyi_entropy(rows(4, 2), alpha=alpha)
    with pytest.raises(InputError, match="alpha is"):
        gram_entropy(torch.eye(3), alpha=alpha)


def test_bad_arguments_are_named() -> None:
    a, b = rows(4, 2), rows(5, 2)
    with pytest.raises(InputError, match="z2 has 5 rows but z1 has 4"):
        renyi_mutual_information(a, b)
    with pytest.raises(InputError, match="z2 contains NaN"):
        renyi_mutual_information(a, a * math.nan)
    with pytest.raises(InputError, match=r"zs\[1\] has 5 rows"):
        renyi_total_correlation([a, b])
    with pytest.raises(InputError, match="y has shape"):
        renyi_conditional_mutual_information(a, a, torch.zeros(5, dtype=torch.long))
    with pytest.raises(InputError, match="y has values"):
        renyi_conditional_mutual_information(a, a, torch.tensor([0, 1, -1, 0]))


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize(
    ("k", "words"),
    [
        (torch.zeros(3, 3), "k has diagonals in"),
        (-torch.ones(3, 3), "k has diagonals in"),
        (torch.stack([torch.eye(2), torch.zeros(2, 2)]), "k has diagonals in"),
        (torch.full((2, 2), math.nan), "k contains NaN"),
        (torch.zeros(0, 0), "k has shape"),
        (torch.ones(2, 3), "k has shape"),
        (torch.ones(3), "k has shape"),
        (torch.eye(3, dtype=torch.int64), "k has dtype"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "k is not symmetric"),
    ],
)
def test_matrices_that_are_no_gram_matrices_are_refused(k: Tensor, words: str, alpha: float) -> None:
    with pytest.raises(InputError, match=words):
        gram_entropy(k, alpha=alpha)


def test_a_list_is_no_gram_matrix() -> None:
    with pytest.raises(InputTypeError, match=r"k must be a torch\.Tensor, got list"):
        gram_entropy([[1.0]])  # type: ignore[arg-type]
