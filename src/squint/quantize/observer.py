"""Ranges from data: what an observer keeps of the values it sees, and the step with the least error."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

_KEPT_PER_BATCH = 16_384
_CANDIDATES = torch.linspace(0.05, 1.0, 40)


class RangeObserver:
    """Keeps an evenly spaced sample of the values that pass, and the least and largest of all of them."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._ends: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        """Remember a sample of `x` and its extremes."""
        values = x.detach().reshape(-1).float()
        if not values.numel():
            return
        stride = max(1, values.numel() // _KEPT_PER_BATCH)
        # With a common factor it would meet some columns of the images again and again and others never.
        while gcd(stride, values.numel()) > 1:
            stride += 1
        self._kept.append(values[::stride].clone())
        self._ends.append(torch.stack(values.aminmax()))

    @property
    def seen(self) -> bool:
        """Whether any value passed."""
        return bool(self._kept)

    @property
    def signed(self) -> bool:
        """Whether any value was negative."""
        return self.seen and bool(self.ends()[0] < 0)

    def values(self) -> Tensor:
        """Return all kept values, shape (n,)."""
        return torch.cat(self._kept)

    def ends(self) -> Tensor:
        """Return the least and the largest of all values, shape (2,)."""
        return torch.stack(torch.cat(self._ends).aminmax())


def best_step(values: Tensor, lowest: float, levels: int) -> Tensor:
    """Return the step that rounds `values` to step * (lowest + k) with the least squared error, per row.

    A search over 40 clipping points between 5 % and 100 % of the largest magnitude.

    Args:
        values: (rows, n).
        lowest: index of the lowest level; whole, or -1/2 for two levels at plus and minus half a step.
        levels: number of levels.

    Returns:
        Steps (rows,), positive; 1 for rows that are all zero.
    """
    reach = max(abs(lowest), abs(lowest + levels - 1))
    largest = values.abs().amax(1)
    full = torch.where(largest > 0, largest / reach, torch.ones_like(largest))
    best, least = full.clone(), torch.full_like(full, torch.inf)
    for fraction in _CANDIDATES.tolist():
        step = full * fraction
        scale = step[:, None]
        level = (values / scale - lowest - 0.5).ceil().clamp(0, levels - 1) + lowest
        error = (level * scale - values).square().sum(1)
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return torch.where(largest > 0, best, torch.ones_like(best))


def covering_step(values: Tensor, lowest: float, levels: int) -> Tensor:
    """Return the smallest step whose range holds every value, with 1 % to spare, per row.

    Args:
        values: (rows, n).
        lowest: index of the lowest level, 0 or below.
        levels: number of levels.

    Returns:
        Steps (rows,), positive; 1 for rows that are all zero.
    """
    highest = lowest + levels - 1
    up = values.amax(1).clamp_min(0) / highest if highest > 0 else torch.zeros(len(values))
    down = -values.amin(1).clamp_max(0) / -lowest if lowest < 0 else torch.zeros_like(up)
    step = 1.01 * torch.maximum(up.to(values), down.to(values))
    return torch.where(step > 0, step, torch.ones_like(step))
