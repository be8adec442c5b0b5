"""The pure mathematics against integrals, sums over every threshold and central differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from squint.quantize import functional as Q

WIDTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 40.0)


def grid(levels: int, count: int = 641) -> Tensor:
    """Return positions that cover the range and two steps on either side, off every kink of uniform noise."""
    return torch.linspace(-2.0, levels + 1.0, count, dtype=torch.float64) + 1e-3 * math.pi


@pytest.mark.parametrize("noise", Q.NOISES)
def test_each_noise_has_mean_zero_variance_one_twelfth_and_a_matching_density(noise: str) -> None:
    z = torch.linspace(-6, 6, 1_200_001, dtype=torch.float64)
    dz = float(z[1] - z[0])
    p = Q.density(z, noise)
    # The jumps of the uniform density cost half a cell each; smooth densities integrate to 1e-9.
    loose = dz if noise == "uniform" else 1e-9
    assert float(p.sum() * dz) == pytest.approx(1, abs=2 * loose)
    assert float((p * z).sum() * dz) == pytest.approx(0, abs=1e-9)
    assert float((p * z * z).sum() * dz) == pytest.approx(1 / 12, abs=loose)
    torch.testing.assert_close(p.cumsum(0) * dz, Q.cdf(z, noise), atol=5 * dz, rtol=0)


@pytest.mark.parametrize("noise", Q.NOISES)
def test_quantile_inverts_the_cdf(noise: str) -> None:
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    torch.testing.assert_close(Q.cdf(Q.quantile(u, noise), noise), u, atol=1e-12, rtol=0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("noise", Q.NOISES)
@pytest.mark.parametrize("levels", [2, 3, 4, 16, 256])
def test_slope_and_moment_are_the_sums_over_all_thresholds(noise: str, levels: int, width: float) -> None:
    u = grid(levels)
    j = torch.arange(1, levels, dtype=u.dtype)
    if noise == "uniform":  # within the tolerance of a kink the slope is one-sided, tested below
        kinks = (j[:, None] - 0.5 + torch.tensor([-0.5, 0.5]) * width).flatten()
        u = u[(u[:, None] - kinks).abs().amin(1) > 2 * Q.tolerance(levels)]
    p = Q.density((u[:, None] - (j - 0.5)) / width, noise) / width
    slope, moment = Q.slope(u, width, levels, noise)
    # Truncated tails lie below double precision; a sum of up to 255 terms rounds to about 1e-13.
    torch.testing.assert_close(slope, p.sum(1), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(moment, (p * (j - 0.5)).sum(1), atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("noise", Q.NOISES)
def test_derivatives_of_the_mean_match_central_differences(noise: str, width: float) -> None:
    levels, low, step = 8, -0.3, 0.17
    x = low + step * grid(levels)

    def mean(x: Tensor, low: float, step: float, w: float) -> Tensor:
        return low + step * Q.expected_level((x - low) / step, w / step, levels, noise)

    w, h = width * step, 1e-6
    found = Q.expected_gradients(x, low, step, width, levels, noise)
    reference = {
        "x": (mean(x + h, low, step, w) - mean(x - h, low, step, w)) / (2 * h),
        "low": (mean(x, low + h, step, w) - mean(x, low - h, step, w)) / (2 * h),
        "step": (mean(x, low, step + h, w) - mean(x, low, step - h, w)) / (2 * h),
        "w": (mean(x, low, step, w + h) - mean(x, low, step, w - h)) / (2 * h),
        "step_tied": (mean(x, low, step + h, width * (step + h)) - mean(x, low, step - h, width * (step - h)))
        / (2 * h),
    }
    for name, value in reference.items():
        # Where a difference straddles a kink of the uniform noise the two do not compare: at most two
        # points per threshold out of 641.
        far = (found[name] - value).abs() > 1e-6 * (1 + value.abs())
        assert int(far.sum()) <= (2 * (levels - 1) if noise == "uniform" else 0), name


@pytest.mark.parametrize("width", [1.0, 2.0, 3.0])
def test_uniform_noise_of_whole_width_is_unbiased_away_from_the_ends(width: float) -> None:
    levels = 16
    margin = (width - 1) / 2
    u = torch.linspace(margin, levels - 1 - margin, 501, dtype=torch.float64)
    torch.testing.assert_close(Q.expected_level(u, width, levels), u, atol=1e-12, rtol=0)
    assert float(Q.expected_level(u[:1] - 0.25, width, levels) - (u[:1] - 0.25)) > 0.01


@pytest.mark.parametrize(
    ("noise", "width"), [("uniform", 0.5), ("uniform", 1.5), ("logistic", 1.0), ("gaussian", 1.0)]
)
def test_other_noise_is_biased(noise: str, width: float) -> None:
    u = torch.linspace(4, 10, 601, dtype=torch.float64)
    assert float((Q.expected_level(u, width, 16, noise) - u).abs().max()) > 1e-3


@given(
    width=st.floats(0.05, 30),
    levels=st.integers(2, 256),
    noise=st.sampled_from(Q.NOISES),
    fraction=st.floats(-0.2, 1.2),
)
def test_variance_is_that_of_the_level_distribution(
    width: float, levels: int, noise: str, fraction: float
) -> None:
    u = torch.tensor([fraction * (levels - 1)], dtype=torch.float64)
    f = Q.cdf((u - torch.arange(1, levels) + 0.5) / width, noise)
    probability = torch.cat([1 - f[:1], f[:-1] - f[1:], f[-1:]])
    k = torch.arange(levels, dtype=torch.float64)
    mean = (k * probability).sum()
    variance = ((k - mean).square() * probability).sum()
    assert float(Q.expected_level(u, width, levels, noise)) == pytest.approx(float(mean), abs=1e-9)
    assert float(Q.level_variance(u, width, levels, noise)) == pytest.approx(float(variance), abs=1e-7)


@pytest.mark.parametrize("levels", [2, 3, 4, 15, 16, 255, 256])
@pytest.mark.parametrize("width", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_at_kinks_the_slope_is_the_inner_one_sided_derivative(levels: int, width: float) -> None:
    edges = torch.arange(1, levels, dtype=torch.float32)[:, None] - 0.5 + torch.tensor([-0.5, 0.5]) * width
    kinks = edges.flatten()
    middle = (levels - 1) / 2
    inward = kinks + torch.where(kinks > middle, -0.01, 0.01)
    at, _ = Q.slope(kinks, width, levels, "uniform")
    beside, _ = Q.slope(inward, width, levels, "uniform")
    assert torch.equal(at, beside)


@pytest.mark.parametrize("levels", [2, 4, 256])
def test_inside_forgives_float_rounding_and_no_more(levels: int) -> None:
    slack = Q.tolerance(levels)
    ends = torch.tensor([0.0, levels - 1.0], dtype=torch.float64)
    outward = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert Q.inside(ends, levels).all()
    assert Q.inside(ends + 0.9 * slack * outward, levels).all()
    assert not Q.inside(ends + 1.1 * slack * outward, levels).any()
    assert slack < 1e-3
