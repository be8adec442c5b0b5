"""Batch moments by the kernel of batch normalization: values and gradients against torch.var_mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from squint.training.synchronised import batch_moments

LAYOUTS = {"rows": (9, 4), "images": (3, 4, 5, 2)}


def _values(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 2
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
def test_both_derivatives_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    def moments(x: Tensor) -> tuple[Tensor, ...]:
        return batch_moments(x)[:2]

    assert torch.autograd.gradcheck(moments, _values(shape))
    assert torch.autograd.gradgradcheck(moments, _values(shape))


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)]
)
def test_values_are_those_of_var_mean(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x = _values(shape, dtype)
    mean, variance, count = batch_moments(x)
    wide = x.detach().double()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    other_variance, other_mean = torch.var_mean(wide, axes, correction=0)
    assert mean.dtype == variance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(mean.double(), other_mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(variance.double(), other_variance, rtol=tolerance, atol=tolerance)
    assert count == x.numel() // x.shape[1]


def test_a_channel_without_spread_has_variance_zero_and_a_finite_gradient() -> None:
    x = torch.stack([torch.full((6,), 1.5), torch.arange(6.0)], 1).requires_grad_()
    mean, variance, _ = batch_moments(x)
    assert mean[0] == 1.5
    assert variance[0] == 0
    (slope,) = torch.autograd.grad(variance.sum() + mean.sum(), x)
    torch.testing.assert_close(slope[:, 0], torch.full((6,), 1 / 6))
