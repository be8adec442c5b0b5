"""KSG against Gaussian pairs, discrete pairs and a naive implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from torch import Tensor

from squint._checks import InputError
from squint.information import ksg


def pair(n: int, d: int, rho: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    return a, rho * a + math.sqrt(1 - rho**2) * b


def naive(x: Tensor, y: Tensor, k: int, variant: int) -> float:
    n = len(x)
    x, y = (v / v.std(0, correction=0).square().mean().sqrt() for v in (x, y))
    terms = []
    for i in range(n):
        dx, dy = (np.abs(v.numpy() - v[i].numpy()).max(1) for v in (x, y))
        nearest = np.argsort(np.where(np.arange(n) == i, np.inf, np.maximum(dx, dy)))[:k]
        others = np.arange(n) != i
        if variant == 1:
            radius = max(dx[nearest[-1]], dy[nearest[-1]])
            counts = [int(((d < radius) & others).sum()) + 1 for d in (dx, dy)]
        else:
            counts = [int(((d <= d[nearest].max()) & others).sum()) for d in (dx, dy)]
        terms.append(digamma(counts[0]) + digamma(counts[1]))
    return float(digamma(k) - (1 / k if variant == 2 else 0) + digamma(n) - np.mean(terms))


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_matches_a_naive_implementation(k: int, variant: int) -> None:
    a, b = pair(60, 2, 0.7, torch.Generator().manual_seed(0))
    assert float(ksg(a, b, k=k, variant=variant)) == pytest.approx(naive(a, b, k, variant), abs=1e-12)


def test_more_rows_than_a_chunk_are_counted_once() -> None:
    a, b = pair(700, 1, 0.7, torch.Generator().manual_seed(1))
    assert float(ksg(a, b)) == pytest.approx(naive(a, b, 3, 1), abs=1e-12)


@pytest.mark.parametrize("variant", [1, 2])
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_gaussian_pairs(rho: float, variant: int) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.stack([ksg(*pair(300, 1, rho, generator), variant=variant) for _ in range(12)])
    truth = -0.5 * math.log(1 - rho**2)
    # Kraskov et al. (figure 4) find a bias below 0.02 nats at this n and k, on top of four standard errors.
    assert abs(float(values.mean()) - truth) < 0.02 + 4 * float(values.std()) / math.sqrt(12)


@pytest.mark.parametrize("variant", [1, 2])
def test_discrete_variables_use_the_tied_form(variant: int) -> None:
    x = torch.arange(400, dtype=torch.float64).remainder(2).unsqueeze(1)
    same = ksg(x, x, variant=variant)
    assert float(same) == pytest.approx(float(digamma(400) - digamma(200)), abs=1e-12)
    assert float(same) == pytest.approx(math.log(2), abs=1 / 200)
    independent = torch.arange(400, dtype=torch.float64).div(2).floor().remainder(2).unsqueeze(1)
    assert abs(float(ksg(x, independent, variant=variant))) < 1 / 100


@pytest.mark.parametrize("variant", [1, 2])
def test_constant_variables_carry_nothing(variant: int) -> None:
    a, constant = torch.randn(30, 2, generator=torch.Generator().manual_seed(3)), torch.full((30, 1), 0.1)
    assert float(ksg(a, constant, variant=variant)) == 0
    assert float(ksg(constant, constant, variant=variant)) == 0


def test_units_do_not_matter_and_no_gradient_is_kept() -> None:
    a, b = pair(50, 2, 0.7, torch.Generator().manual_seed(4))
    value = ksg(a.requires_grad_(), b)
    assert not value.requires_grad
    for first, second in ((1024, 1 / 1024), (1e-250, 1), (1e150, 3)):
        assert float(ksg(first * a, second * b - 7)) == pytest.approx(float(value), abs=1e-9)


def test_ties_stay_ties_in_any_unit() -> None:
    whole = torch.randint(0, 4, (2, 120, 2), generator=torch.Generator().manual_seed(8)).double()
    value = float(ksg(whole[0], whole[0] + whole[1]))
    for scale in (3.0, 7.0, 1024.0):
        assert float(ksg(scale * whole[0], whole[0] + whole[1])) == pytest.approx(value, abs=1e-12)


def test_bad_arguments_are_named() -> None:
    a, b = pair(10, 1, 0.5, torch.Generator().manual_seed(5))
    for k in (0, 10, 2.5):
        with pytest.raises(InputError, match=f"k is {k}"):
            ksg(a, b, k=k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="variant is 3"):
        ksg(a, b, variant=3)
    with pytest.raises(InputError, match="z1 contains NaN"):
        ksg(a * math.nan, b)
    with pytest.raises(InputError, match="z2 has 4 rows"):
        ksg(a, b[:4])
    with pytest.raises(InputError, match="z1 has 1 rows"):
        ksg(a[:1], b[:1])
