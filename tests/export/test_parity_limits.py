"""How far chance lets equal graphs differ: closed forms, and equal distributions compared many times."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from squint.export.parity import (
    FALSE_ALARM,
    FEWEST_STOCHASTIC,
    RUNS,
    STOCHASTIC_IMAGES,
    _mean_deviation,
    _variance_deviation,
    limits,
)

TIMES = 3000


def test_the_limits_are_quantiles() -> None:
    # The survival function of chi-square with two degrees of freedom is exp(-x / 2); t with one is Cauchy.
    mean, variance = limits(2)
    wider = (2 * RUNS - 2) / (2 * RUNS - 4)
    assert mean == pytest.approx(math.sqrt(-math.log(FALSE_ALARM) * wider))
    assert variance == pytest.approx(1 / math.tan(math.pi * FALSE_ALARM / 2))
    assert limits(10**6)[0] == pytest.approx(1.016, abs=0.01)


def probabilities(generator: torch.Generator, n: int, shift: float = 0.0) -> Tensor:
    """Return (RUNS, n, 2) probabilities of two classes, of mean one half plus shift standard deviations."""
    p = 0.5 + 0.1 * (torch.randn(RUNS, n, generator=generator, dtype=torch.float64) + shift)
    return torch.stack([p, 1 - p], -1)


@pytest.mark.parametrize("n", [FEWEST_STOCHASTIC, 16, STOCHASTIC_IMAGES])
def test_equal_distributions_are_hardly_ever_refused_and_others_are(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    mean, variance = limits(n)
    refused = 0
    for _ in range(TIMES):
        a, b = probabilities(generator, n), probabilities(generator, n)
        refused += _mean_deviation(a, b) > mean or abs(_variance_deviation(a, b)) > variance
    # Twice one in 10,000 of 3,000; more than six has a chance of one in 100,000 or less.
    assert refused <= 6
    # Less than a standard deviation of the noise, on all images alike.
    assert _mean_deviation(probabilities(generator, n), probabilities(generator, n, 0.8)) > mean
