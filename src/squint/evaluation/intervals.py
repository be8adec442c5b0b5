"""Intervals: Wilson over images, Student's t over seeds, bootstrap for paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special
from torch import Tensor

from squint._checks import InputError


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share of `n` images (Wilson 1927).

    `successes` may be fractional (a sum of probabilities per image); the interval is then conservative, since
    the spread between images is at most that of outcomes that are 0 or 1.
    """
    if n < 1:
        raise InputError(f"n is {n}; allowed: 1 image or more")
    z = float(special.ndtri(0.5 + level / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of the mean of at least two values (training seeds)."""
    if len(values) < 2:
        raise InputError(f"a t-interval needs 2 values or more; got {len(values)}")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(special.stdtrit(len(values) - 1, 0.5 + level / 2)) * error
    return mean - half, mean + half


def paired_bootstrap(
    a: Tensor, b: Tensor, *, seed: int, repeats: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of mean(a - b) over resampled images.

    Args:
        a: per-image scores (n,).
        b: per-image scores of the same images (n,).
        seed: of the resampling.
        repeats: resamples.
        level: coverage.
    """
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(
            f"paired scores have shapes {tuple(a.shape)} and {tuple(b.shape)}; needed: equal (n,)"
        )
    difference = (a.double() - b.double()).cpu().numpy()
    chosen = np.random.default_rng(seed).integers(0, len(difference), (repeats, len(difference)))
    means = difference[chosen].mean(1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def intervals_of(shares: Mapping[str, float | None], n: int) -> dict[str, list[float]]:
    """Return the Wilson intervals of shares of `n` images, by their names; of those that there are."""
    return {name: list(wilson(share * n, n)) for name, share in shares.items() if share is not None}
