"""The regression estimator against a fitted line, its limits, and the coverage of its intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from squint._checks import InputError
from squint.evaluation.extrapolation import extrapolate


def outcomes(
    generator: np.random.Generator, images: int, lost: float
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return shares under a cheap attack, and under one that takes some images wholly, others in part."""
    cheap = generator.beta(0.15, 0.13, images)
    hit = generator.random(images) < lost
    return cheap, cheap * (1 - hit * generator.choice([1.0, 0.5], images))


def test_the_estimate_is_the_fitted_line_at_the_mean_of_all() -> None:
    cheap, sample = outcomes(np.random.default_rng(0), 150, 0.1)
    slope, intercept = np.polyfit(cheap, sample, 1)
    found = extrapolate(torch.from_numpy(sample), torch.from_numpy(cheap), 0.4, 10_000)
    assert found.share == pytest.approx(intercept + slope * 0.4)
    assert found.slope == pytest.approx(slope)
    assert found.correlation == pytest.approx(np.corrcoef(cheap, sample)[0, 1])
    squares = float(((sample - intercept - slope * cheap) ** 2).sum())
    spread = 1 / 150 + (cheap.mean() - 0.4) ** 2 / ((cheap - cheap.mean()) ** 2).sum()
    error = math.sqrt((squares + 1) / 148 * spread + slope**2 * 0.4 * 0.6 / 10_000)
    half = float(stats.t.ppf(0.975, 148)) * error
    assert found.ci95 == pytest.approx((found.share - half, found.share + half))
    assert (found.images, found.total) == (150, 10_000)


def test_an_attack_that_does_what_the_cheap_one_does_leaves_what_that_leaves_of_all() -> None:
    cheap, _ = outcomes(np.random.default_rng(1), 80, 0.0)
    both = torch.from_numpy(cheap)
    found = extrapolate(both, both, 0.31, 5000)
    assert found.share == pytest.approx(0.31)
    assert found.slope == pytest.approx(1)
    assert found.correlation == pytest.approx(1)
    # A luck that few images share narrows the interval, but not to nothing.
    assert 0.02 < found.ci95[1] - found.ci95[0] < 0.08


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_cheap_attack_that_tells_no_images_apart_says_nothing(share: float) -> None:
    sample = torch.tensor([0.0, 1.0, 1.0] * 20)
    found = extrapolate(sample, torch.full((60,), share), share, 1000)
    assert found.share == pytest.approx(2 / 3)
    assert (found.slope, found.correlation) == (0.0, 0.0)
    assert found.ci95[1] - found.ci95[0] > 0.2


def test_estimates_stay_shares() -> None:
    low = torch.tensor([0.0, 1.0] * 10)
    found = extrapolate(low, low, 0.0, 1000)
    assert found.share == 0.0
    assert found.ci95[0] == 0.0
    assert found.ci95[1] > 0


@pytest.mark.parametrize(("cheap", "sample", "mean"), [(0.99, 0.5, 0.8), (0.01, 0.5, 0.3)])
def test_a_steep_line_on_images_that_are_hardly_told_apart_is_no_finding(
    cheap: float, sample: float, mean: float
) -> None:
    rest = round(cheap)
    x, y = torch.tensor([float(rest)] * 9 + [cheap]), torch.tensor([float(rest)] * 9 + [sample])
    found = extrapolate(y, x, mean, 10_000)
    assert found.share == 1 - rest
    assert found.ci95 == (0.0, 1.0)


@pytest.mark.parametrize("lost", [0.02, 0.1])
def test_intervals_hold_the_truth_as_often_as_they_say_and_are_narrower_than_the_sample_s(
    lost: float,
) -> None:
    generator = np.random.default_rng(2)
    cheap, dear = outcomes(generator, 10_000, lost)
    held, nearer, widths = 0, 0, []
    for _ in range(400):
        chosen = generator.choice(10_000, 100, replace=False)
        found = extrapolate(
            torch.from_numpy(dear[chosen]), torch.from_numpy(cheap[chosen]), cheap.mean(), 10_000
        )
        held += found.ci95[0] <= dear.mean() <= found.ci95[1]
        nearer += abs(found.share - dear.mean()) < abs(dear[chosen].mean() - dear.mean())
        widths.append(found.ci95[1] - found.ci95[0])
    assert held >= 0.92 * 400
    assert nearer > 0.7 * 400
    # The share alone has an interval of 0.18.
    assert np.mean(widths) < 0.12


def test_bad_input_is_named() -> None:
    row = torch.full((20,), 0.5)
    with pytest.raises(InputError, match=r"shapes \(20,\) and \(19,\)"):
        extrapolate(row, row[1:], 0.5, 100)
    with pytest.raises(InputError, match="images is 9"):
        extrapolate(row[:9], row[:9], 0.5, 100)
    with pytest.raises(InputError, match="total is 19"):
        extrapolate(row, row, 0.5, 19)
    with pytest.raises(InputError, match=r"cheap_share is 1.5"):
        extrapolate(row, row, 1.5, 100)
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(InputError, match=r"outside \[0, 1\] or NaN"):
            extrapolate(torch.cat([row[1:], torch.tensor([wrong])]), row, 0.5, 100)
