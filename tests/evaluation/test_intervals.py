"""Intervals against published values, exact coverage and simulation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from squint._checks import InputError
from squint.evaluation.intervals import paired_bootstrap, t_interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (50, 100, 0.403832, 0.596168),
    ],
)
def test_wilson_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


def test_wilson_covers_on_average() -> None:
    """Exact: the chance over a binomial n = 40 that the interval holds the truth, averaged over the truth."""
    n = 40
    shares = torch.linspace(0.02, 0.98, 97).tolist()
    inside = [[low <= p <= high for low, high in (wilson(k, n) for k in range(n + 1))] for p in shares]
    coverage = [
        sum(stats.binom.pmf(k, n, p) for k in range(n + 1) if row[k])
        for p, row in zip(shares, inside, strict=True)
    ]
    assert sum(coverage) / len(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.9


def test_wilson_takes_fractional_successes_and_refuses_no_images() -> None:
    low, high = wilson(7.25, 10)
    assert wilson(7, 10)[0] < low < 0.725 < high < wilson(8, 10)[1]
    with pytest.raises(InputError, match="n is 0"):
        wilson(0, 0)


def test_t_interval() -> None:
    half = 4.302653 / math.sqrt(3)
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), abs=1e-6)
    with pytest.raises(InputError, match="2 values or more; got 1"):
        t_interval([0.5])


def test_paired_bootstrap_covers() -> None:
    """Over 300 experiments of 60 images the interval holds the true difference as often as it should."""
    generator = torch.Generator().manual_seed(5)
    experiments, n, truth = 300, 60, 0.1
    held = 0
    for seed in range(experiments):
        b = torch.rand(n, generator=generator)
        a = b + truth + 0.3 * (torch.rand(n, generator=generator) - 0.5)
        low, high = paired_bootstrap(a, b, seed=seed, repeats=400)
        held += low <= truth <= high
    # Percentile intervals of 60 images lose about one point; five standard errors of the share are added.
    error = math.sqrt(0.94 * 0.06 / experiments)
    assert abs(held / experiments - 0.94) < 5 * error


def test_paired_bootstrap_uses_the_pairs() -> None:
    a = torch.tensor([1.0, 0.0] * 50)
    assert paired_bootstrap(a, a, seed=0) == (0.0, 0.0)
    assert paired_bootstrap(a, 1 - a, seed=0)[0] < 0 < paired_bootstrap(a, 1 - a, seed=0)[1]
    with pytest.raises(InputError, match="needed: equal"):
        paired_bootstrap(a, a[:3], seed=0)
