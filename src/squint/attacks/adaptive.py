"""Gradients that take more draws where the draws disagree, example by example."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from squint._checks import InputError
from squint.attacks.gradients import Units, made_finite
from squint.attacks.objectives import Objective

LEAST_COSINE = 0.8
"""Cosine of two half-gradients below which an example's draws are doubled."""
MOST_DRAWS = 64
LAST_SHARE = 0.1
"""Share of the steps, the last, that take twice the draws whatever the cosine."""


class AdaptiveGradient:
    """The pooled gradient of one ascent, with a number of draws per example that grows where it must.

    The gradient of the pooled loss is the sum of what the first and what the second half of the draws give
    it. Where the cosine of these two is below 0.8, or a half gives nothing, the example takes twice as many
    draws from the next step on, up to 64. The last tenth of the steps takes twice as many once more.
    Comparing the halves costs a second backward pass, which examples with 64 draws no longer pay.

    Args:
        units: the model; its number of draws is where every example begins.
        goal: rows (n,) of the batch -> the loss of these examples.
        steps: how often the gradient will be taken.

    Attributes:
        draws: draws that each example has grown to (batch,).

    Raises:
        squint.InputError: the units have fewer than two draws, which cannot be halved.
    """

    def __init__(self, units: Units, goal: Callable[[Tensor], Objective], steps: int) -> None:
        if units.draws < 2:
            raise InputError(f"eot is {units.draws} with adaptive_eot; allowed: 2 or more, to be halved")
        self._units, self._goal = units, goal
        self._most = max(MOST_DRAWS, units.draws)
        self._last = math.ceil((1 - LAST_SHARE) * steps)
        self._taken = 0
        self.draws = torch.full((len(units.y),), units.draws, device=units.y.device)

    def __call__(self, point: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return losses (batch,) and gradients like the point, in float64, under the noise of `seed`."""
        factor = 2 if self._taken >= self._last else 1
        self._taken += 1
        wanted = (self.draws * factor).clamp(max=self._most)
        losses = torch.empty(len(point), dtype=torch.float64, device=point.device)
        slopes = torch.empty(point.shape, dtype=torch.float64, device=point.device)
        for draws in sorted(set(wanted.tolist())):
            rows = (wanted == draws).nonzero().squeeze(1)
            # The first step is one group, by the units themselves: their checks of the model are then done.
            first = draws == self._units.draws and len(rows) == len(point)
            part, goal = self._units if first else self._units.part(rows, draws), self._goal(rows)
            if draws == self._most:
                losses[rows], slopes[rows] = part.gradient(point[rows], goal, seed)
                continue
            both, halves = part.gradients(point[rows], _by_halves(goal), seed)
            losses[rows], slopes[rows] = both[0], halves.sum(0)
            one, other = _unit_size(made_finite(halves.flatten(0, 1)).view_as(halves).flatten(2))
            alike = F.cosine_similarity(one, other, dim=1)
            self.draws[rows[alike < LEAST_COSINE]] *= 2
        return losses, slopes


def _by_halves(goal: Objective) -> Objective:
    """Return the loss twice, (2, batch): of all draws, but differentiable in one half of them each."""

    def rows(logits: Tensor) -> Tensor:
        first, second = logits.tensor_split(2)
        return torch.stack(
            [goal(torch.cat([first, second.detach()])), goal(torch.cat([first.detach(), second]))]
        )

    return rows


def _unit_size(flat: Tensor) -> Tensor:
    """Return (halves, batch, elements) of largest element 1: a saturated network's squares underflow."""
    return flat / flat.abs().amax(2, keepdim=True).clamp_min(1e-300)
