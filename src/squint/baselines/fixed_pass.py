"""One training pass over a batch, and further passes at its noise and batch statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from squint._random import default_generator, next_seed, next_seeds
from squint.ensemble import Ensemble
from squint.training.smoothness import BatchStatistics


class FixedPass:
    """Runs a batch once as training does, then again at other points, where only the image differs.

    Further passes meet the same noise (over a part of the batch: that of its first rows) and normalize by the
    first pass's batch statistics, with their graph, so that an example's loss depends on that example alone;
    no running statistic moves again.

    Args:
        ens: a model with `member_logits`.
        x: images (batch, ...) in [0, 1].
        draws: noise samples per member.

    Attributes:
        logits: of the first pass, (draws, members, batch, classes).
    """

    def __init__(self, ens: Any, x: Tensor, draws: int) -> None:
        self._ens, self._draws = ens, draws
        self._generator = default_generator()
        self._before = self._generator.get_state()
        self._statistics = BatchStatistics(ens)
        with self._statistics.record():
            self.logits: Tensor = ens.member_logits(x, draws, generator=self._generator)
        self._after = self._generator.get_state()

    def losses(self, points: Tensor, y: Tensor) -> Tensor:
        """Return each member's cross-entropy at `points`, mean over draws, (members, batch)."""
        return self._losses(self._ens, points, y, 0)

    def losses_of(self, member: int, points: Tensor, y: Tensor) -> Tensor:
        """Return one member's cross-entropy at `points`, mean over draws, (1, batch); runs no other."""
        alone = Ensemble([self._ens.members[member]], chunk=self._ens.chunk)
        return self._losses(alone, points, y, member)

    def _losses(self, ens: Any, points: Tensor, y: Tensor, skipped: int) -> Tensor:
        self._generator.set_state(self._before)
        for _ in range(skipped):
            # As an ensemble draws for every member.
            next_seeds(self._generator, self._draws)
            next_seed(self._generator)
        with self._statistics.replay():
            logits = ens.member_logits(points, self._draws, generator=self._generator)
        self._generator.set_state(self._after)
        return member_losses(logits, y)


def member_losses(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy (members, batch), mean over draws, of (draws, members, batch, classes)."""
    labels = y.expand(*logits.shape[:2], -1).reshape(-1)
    losses = F.cross_entropy(logits.flatten(0, 2), labels, reduction="none")
    return losses.view(logits.shape[:3]).mean(0)


def input_gradients(losses: Tensor, x: Tensor) -> Tensor:
    """Return the gradients (members, batch, n) of losses (members, batch) by x, with their graph."""
    rows: Sequence[Tensor] = [
        torch.autograd.grad(row.sum(), x, create_graph=True)[0].flatten(1) for row in losses
    ]
    return torch.stack(list(rows))


def pair_cosines(gradients: Tensor) -> Tensor:
    """Return the cosine between each pair of members' gradients, (pairs, batch), of (members, batch, n).

    A gradient that vanishes has cosine 0 with every other.
    """
    # The largest element goes first: a saturated network's gradient is below the floor of normalization.
    largest = gradients.detach().abs().amax(-1, keepdim=True)
    unit = F.normalize(gradients / largest.clamp_min(torch.finfo(gradients.dtype).tiny), dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1).unbind()
    return (unit[first] * unit[second]).sum(-1)
