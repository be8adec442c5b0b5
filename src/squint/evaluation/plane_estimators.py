"""Estimators of the information plane: what is measured between two members, and with which errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from squint import information as I

SHUFFLES = 8


@dataclass(frozen=True)
class Estimator:
    """How a pair of members is measured: on which layer, given the label or not, and how it is resampled.

    Attributes:
        layer: "predictions" or "features".
        pair: two members' tensors (n, ...), and labels where it is conditional -> a scalar.
        conditional: whether it is information given the label.
        every: all members' tensors, and the same labels -> the mean over pairs, where that is cheaper than
            pair by pair: each member's Gram matrix is then computed once.
    """

    layer: str
    pair: Callable[..., Tensor]
    conditional: bool = False
    every: Callable[..., Tensor] | None = None

    @property
    def replacement(self) -> bool:
        """Whether rows may be drawn twice: kernels take copies for dependence."""
        return self.layer == "predictions"

    def mean(self, members: Sequence[Tensor], *given: Tensor) -> Tensor:
        """Return the mean over pairs of members, a scalar."""
        if self.every is not None:
            return self.every(members, *given)
        pairs = combinations(members, 2)
        return torch.stack([self.pair(a, b, *given) for a, b in pairs]).mean()


def _renyi(a: Tensor, b: Tensor) -> Tensor:
    return I.renyi_mutual_information(F.normalize(a, dim=1), F.normalize(b, dim=1))


def _renyi_conditional(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return I.renyi_conditional_mutual_information(F.normalize(a, dim=1), F.normalize(b, dim=1), y)


def _renyi_mean(members: Sequence[Tensor]) -> Tensor:
    return I.redundancy([F.normalize(z, dim=1) for z in members]) / math.comb(len(members), 2)


def _renyi_conditional_mean(members: Sequence[Tensor], y: Tensor) -> Tensor:
    total = I.conditional_redundancy([F.normalize(z, dim=1) for z in members], y)
    return total / math.comb(len(members), 2)


ESTIMATORS = {
    "soft_label": Estimator("predictions", I.soft_label_mutual_information),
    "soft_label_conditional": Estimator("predictions", I.soft_label_conditional_mutual_information, True),
    "renyi": Estimator("features", _renyi, every=_renyi_mean),
    "renyi_conditional": Estimator("features", _renyi_conditional, True, _renyi_conditional_mean),
}
"""I(Ŷ_i; Ŷ_j) of draw-averaged predictions, the same given Y, and both of one draw's features (order 2)."""


def mean_information(
    estimator: Estimator,
    members: Sequence[Tensor],
    labels: Tensor,
    *,
    generator: torch.Generator,
    bootstrap: int,
) -> tuple[float, float, tuple[float, float]]:
    """Return the mean over pairs of members, the mean of its shuffled baseline, and its bootstrap interval.

    Args:
        estimator: how a pair is measured.
        members: one tensor (n, ...) per member.
        labels: (n,), used by conditional estimators.
        generator: of shuffles and resamples.
        bootstrap: resamples.
    """
    pairs = list(combinations(range(len(members)), 2))
    given = (labels,) if estimator.conditional else ()

    def mean(*tensors: Tensor) -> Tensor:
        return estimator.mean(tensors[: len(members)], *tensors[len(members) :])

    measure = partial(estimator.pair, y=labels) if given else estimator.pair
    baselines = [
        I.shuffled_baseline(
            measure,
            members[i],
            members[j],
            generator=generator,
            repeats=SHUFFLES,
            y=labels if given else None,
        ).mean
        for i, j in pairs
    ]
    tensors = (*members, *given)
    ci95 = I.bootstrap_interval(
        mean, *tensors, generator=generator, repeats=bootstrap, replacement=estimator.replacement
    )
    return float(mean(*tensors)), sum(baselines) / len(baselines), ci95
