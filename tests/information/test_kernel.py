"""Gram matrices against a naive computation in float64, and bandwidth rules against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError
from squint.information import gram, label_gram


def rows(n: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(n, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def distances(z: Tensor) -> Tensor:
    return (z.double().unsqueeze(0) - z.double().unsqueeze(1)).square().sum(-1).sqrt()


def upper(matrix: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    n = matrix.shape[0]
    return np.asarray(matrix[tuple(torch.triu_indices(n, n, 1))].numpy())


def sigma_of(k: Tensor, z: Tensor) -> float:
    """Return the bandwidth that a Gram matrix was made with."""
    return math.sqrt(float(distances(z)[0, 1]) ** 2 / (-2 * math.log(float(k[0, 1]))))


@pytest.mark.parametrize("n", [4, 5, 6, 7])  # even and odd counts of pairs
def test_median_is_the_median_of_distances_between_different_rows(n: int) -> None:
    z = rows(n, 3)
    assert sigma_of(gram(z), z) == pytest.approx(float(np.median(upper(distances(z)))), rel=1e-12)


def test_silverman_and_neighbours_follow_their_formulas() -> None:
    z = rows(40, 3)
    deviation = math.sqrt(float(z.var(0).mean()))
    assert sigma_of(gram(z, "silverman"), z) == pytest.approx(
        deviation * (4 / (40 * 5)) ** (1 / 7), rel=1e-12
    )
    nearest = distances(z).fill_diagonal_(math.inf).sort(1).values[:, :10].mean()
    assert sigma_of(gram(z, "neighbours"), z) == pytest.approx(float(nearest), rel=1e-12)


@pytest.mark.parametrize("rule", ["median", "silverman", "neighbours"])
def test_with_labels_a_rule_sees_only_pairs_of_one_class(rule: str) -> None:
    z, y = rows(30, 4), torch.arange(30) % 3
    apart = z + 1e3 * y.unsqueeze(1)
    same = label_gram(y, torch.float64).bool()
    assert torch.allclose(gram(z, rule, y=y)[same], gram(apart, rule, y=y)[same], rtol=1e-8)


def test_delta_marks_rows_that_coincide() -> None:
    y = torch.tensor([2, 0, 2, 1, 0])
    assert torch.equal(gram(torch.nn.functional.one_hot(y).float(), "delta"), label_gram(y))


def test_far_from_the_origin_float32_keeps_its_digits() -> None:
    generator = torch.Generator().manual_seed(1)
    z = 1024 + torch.randint(-512, 512, (64, 32), generator=generator) / 512  # exact in float32
    exact = torch.exp(-(distances(z) ** 2) / (2 * 4.0**2))
    # |d²| error: 32 products of centred entries below 1, relative rounding 2^-24 each, some 1e-5 in all.
    assert float((gram(z, 4.0) - exact).abs().max()) < 1e-5 / (2 * 4.0**2)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e5, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_constant_rows_give_ones_and_zero_gradients(value: float, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and abs(value) > 6e4:
        value = 100.0
    z = torch.full((65, 70), value, dtype=dtype, requires_grad=True)
    k = gram(z)
    k.square().sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(k, torch.ones_like(k))
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_mostly_repeated_rows_have_median_zero_in_float32() -> None:
    z = torch.rand(100, 200, generator=torch.Generator().manual_seed(2))
    z[:80] = z[0]
    assert torch.equal(gram(z), torch.ones(100, 100))


def test_gradient_treats_the_bandwidth_as_a_number() -> None:
    z = rows(9, 4).requires_grad_()
    sigma = sigma_of(gram(z.detach()), z.detach())
    weights = rows(9, 9, seed=3)
    (by_rule,) = torch.autograd.grad((weights * gram(z)).sum(), z)
    (by_number,) = torch.autograd.grad((weights * gram(z, sigma)).sum(), z)
    assert torch.allclose(by_rule, by_number, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x: gram(x, 1.3), z)


def test_autocast_does_not_coarsen_distances() -> None:
    z = rows(16, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gram(z)
    assert torch.equal(inside, gram(z))


@pytest.mark.parametrize("rule", ["median", "silverman", "neighbours"])
def test_without_any_pair_the_kernel_is_constant(rule: str) -> None:
    assert torch.equal(gram(rows(1, 3), rule), torch.ones(1, 1, dtype=torch.float64))
    alone = gram(rows(5, 3), rule, y=torch.arange(5))
    assert torch.equal(alone, torch.ones(5, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("z", "bandwidth", "message"),
    [
        (torch.full((3, 2), math.nan), "median", "z contains NaN"),
        (torch.full((3, 2), math.inf), "median", "z contains NaN or infinity"),
        (torch.full((3, 2), 1e30), "median", "z has values"),
        (torch.zeros(0, 2), "median", "z has shape"),
        (torch.zeros(3), "median", "z has shape"),
        (torch.zeros(3, 2, dtype=torch.long), "median", "z has dtype"),
        (torch.zeros(3, 2), 0.0, "bandwidth is 0"),
        (torch.zeros(3, 2), -1, "bandwidth is -1"),
        (torch.zeros(3, 2), math.nan, "bandwidth is nan"),
        (torch.zeros(3, 2), "medain", "did you mean 'median'"),
    ],
)
def test_bad_input_is_named(z: Tensor, bandwidth: float | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gram(z, bandwidth)


def test_wrong_kinds_are_named() -> None:
    with pytest.raises(InputTypeError, match="z must be"):
        gram([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="bandwidth must be"):
        gram(torch.zeros(2, 2), None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="y has shape"):
        gram(torch.zeros(2, 2), y=torch.zeros(3, dtype=torch.long))


def test_label_gram_refuses_what_are_no_labels() -> None:
    with pytest.raises(InputTypeError, match=r"y must be a torch\.Tensor, got list"):
        label_gram([1])  # type: ignore[arg-type]
    for y in (torch.tensor(1), torch.zeros(0, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long)):
        with pytest.raises(InputError, match="y has shape"):
            label_gram(y)
    with pytest.raises(InputError, match=r"dtype torch\.float32"):
        label_gram(torch.tensor([0.5, 1.0]))
