"""Gaussian information against −½ log det(1 − ρ²)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint.information import gaussian_mutual_information


def pair(n: int, d: int, rho: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    return a, rho * a + math.sqrt(1 - rho**2) * b


@pytest.mark.parametrize("d", [1, 2, 8, 32])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_corrected_value_is_unbiased_in_every_dimension(d: int, rho: float) -> None:
    generator = torch.Generator().manual_seed(d)
    repeats = 60
    values = torch.stack([gaussian_mutual_information(*pair(100, d, rho, generator)) for _ in range(repeats)])
    truth = -0.5 * d * math.log(1 - rho**2)
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(repeats)


def test_plug_in_is_the_log_determinant_of_the_sample_and_biased_up() -> None:
    a, b = pair(60, 3, 0.6, torch.Generator().manual_seed(0))
    joint = torch.corrcoef(torch.cat([a, b], 1).mT)
    expected = (joint[:3, :3].logdet() + joint[3:, 3:].logdet() - joint.logdet()) / 2
    plain = gaussian_mutual_information(a, b, correction="none")
    assert float(plain) == pytest.approx(float(expected), abs=1e-12)
    bias = float(plain - gaussian_mutual_information(a, b))
    assert bias == pytest.approx(9 / 120, rel=0.1)  # d1·d2/2n and terms of order d/n of it


def test_scale_and_linear_maps_do_not_matter() -> None:
    a, b = pair(80, 3, 0.7, torch.Generator().manual_seed(1))
    mix = torch.tensor([[1.0, 2, 0], [0, 3, 1], [1, 0, 1]], dtype=torch.float64)
    moved = gaussian_mutual_information(1e-6 * a @ mix + 5, 1e6 * b)
    assert float(moved) == pytest.approx(float(gaussian_mutual_information(a, b)), abs=1e-8)


def test_limits_constant_repeated_and_determined() -> None:
    a, b = pair(50, 2, 0.5, torch.Generator().manual_seed(2))
    plain = float(gaussian_mutual_information(a, b))
    constant = torch.full((50, 2), 0.1, dtype=torch.float64)
    assert float(gaussian_mutual_information(torch.cat([a, constant], 1), b)) == pytest.approx(
        plain, abs=1e-12
    )
    assert abs(float(gaussian_mutual_information(constant, b))) < 1e-12
    repeated = gaussian_mutual_information(torch.cat([a, a], 1), b, correction="none")
    assert float(repeated) == pytest.approx(
        float(gaussian_mutual_information(a, b, correction="none")), abs=1.0
    )
    determined = float(gaussian_mutual_information(a, a))
    assert 20 < determined < 2 * 20


def test_ridge_allows_few_rows_and_shrinks() -> None:
    a, b = pair(6, 8, 0.9, torch.Generator().manual_seed(3))
    with pytest.raises(InputError, match="18 or more"):
        gaussian_mutual_information(a, b)
    weak, strong = (float(gaussian_mutual_information(a, b, ridge=r)) for r in (0.1, 10.0))
    assert 0 < strong < weak < math.inf


def test_gradients_match_differences_and_are_finite_at_limits() -> None:
    a, b = pair(12, 2, 0.5, torch.Generator().manual_seed(4))
    assert torch.autograd.gradcheck(gaussian_mutual_information, (a.requires_grad_(), b.requires_grad_()))
    constant = torch.full((12, 1), 0.1, dtype=torch.float64, requires_grad=True)
    for left in (constant, a):
        (gradient,) = torch.autograd.grad(gaussian_mutual_information(left, left), left)
        assert bool(torch.isfinite(gradient).all())


def test_bad_arguments_are_named() -> None:
    a, b = pair(50, 2, 0.5, torch.Generator().manual_seed(2))
    with pytest.raises(InputError, match="z2 contains NaN"):
        gaussian_mutual_information(a, b * math.nan)
    with pytest.raises(InputError, match="z2 has 20 rows"):
        gaussian_mutual_information(a, b[:20])
    with pytest.raises(InputError, match="z1 has 1 rows"):
        gaussian_mutual_information(a[:1], b[:1])
    with pytest.raises(InputError, match="ridge is -1"):
        gaussian_mutual_information(a, b, ridge=-1)
    with pytest.raises(InputError, match="correction is 'miller'"):
        gaussian_mutual_information(a, b, correction="miller")
