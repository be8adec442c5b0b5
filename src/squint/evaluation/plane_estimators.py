"""Estimators of the information plane: what is measured between two members, and with which errors."""

from __future__ import annotations

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
    """How a pair of members is measured: on which layer, given the label or not, and how it is resampled."""

    layer: str
    pair: Callable[..., Tensor]
    conditional: bool = False

    @property
    def replacement(self) -> bool:
        """Whether rows may be drawn twice: kernels take copies for dependence."""
        return self.layer == "predictions"


def _renyi(a: Tensor, b: Tensor) -> Tensor:
    return I.renyi_mutual_information(F.normalize(a, dim=1), F.normalize(b, dim=1))


def _renyi_conditional(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return I.renyi_conditional_mutual_information(F.normalize(a, dim=1), F.normalize(b, dim=1), y)


ESTIMATORS = {
    "soft_label": Estimator("predictions", I.soft_label_mutual_information),
    "soft_label_conditional": Estimator("predictions", I.soft_label_conditional_mutual_information, True),
    "renyi": Estimator("features", _renyi),
    "renyi_conditional": Estimator("features", _renyi_conditional, True),
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
        rest = tensors[len(members) :]
        return torch.stack([estimator.pair(tensors[i], tensors[j], *rest) for i, j in pairs]).mean()

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
