"""How well a score separates two sets of deployments: ROC and precision-recall, bootstrapped over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from squint._checks import InputError

Interval = tuple[float, float]
Floats = NDArray[np.float64]

GRID = np.linspace(0.0, 1.0, 101)
"""False-alarm rates at which a stored ROC curve has its points."""

BLOCK = 2_000_000
"""Weights that the bootstrap holds at once."""


@dataclass(frozen=True)
class Separation:
    """Area under the ROC and the precision-recall curve, detection rates, and 95 % intervals over images.

    `positives` and `negatives` count the images of which at least one deployment is in the set.
    """

    auroc: float
    auroc_ci95: Interval
    aupr: float
    aupr_ci95: Interval
    tpr_at_5_fpr: float
    tpr_at_5_fpr_ci95: Interval
    tpr_at_1_fpr: float
    tpr_at_1_fpr_ci95: Interval
    positives: int
    negatives: int


@dataclass(frozen=True)
class Set:
    """Deployments: scores (n, R), and which of them belong to the set (n, R)."""

    scores: Tensor
    members: Tensor


def separation(positive: Set, negative: Set, *, seed: int, repeats: int = 200) -> Separation | None:
    """Return how well high scores mark the positive deployments; None if either set is empty.

    Intervals are percentiles over resampled images; row i of both sets is the same image, and its deployments
    stay together. Repeats that leave a set empty are left out.

    Args:
        positive: what should be flagged, for example deployments that an attack fooled.
        negative: what should not, for example correct deployments on clean images.
        seed: of the bootstrap.
        repeats: resamples.
    """
    scores, truth, image = _flat(positive, negative)
    if not truth.any() or truth.all():
        return None
    n = len(positive.scores)
    value = _figures(scores, truth)
    random = np.random.default_rng(seed)
    samples, left = [], repeats
    while left:
        block = min(left, max(1, BLOCK // len(scores)))
        counts = np.stack([np.bincount(random.integers(0, n, n), minlength=n) for _ in range(block)])
        weights = counts.astype(np.float64)[:, image]
        whole = (weights[:, truth].sum(1) > 0) & (weights[:, ~truth].sum(1) > 0)
        samples.append(resampled(scores, truth, weights[whole]))
        left -= block
    low, high = np.quantile(np.concatenate(samples), [0.025, 0.975], axis=0)
    intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    return Separation(
        value[0],
        intervals[0],
        value[1],
        intervals[1],
        value[2],
        intervals[2],
        value[3],
        intervals[3],
        int(positive.members.any(1).sum()),
        int(negative.members.any(1).sum()),
    )


def curve(positive: Set, negative: Set) -> dict[str, list[float]] | None:
    """Return an ROC curve as detection rates at the false-alarm rates of `GRID`; None if a set is empty."""
    scores, truth, _ = _flat(positive, negative)
    if not truth.any() or truth.all():
        return None
    # Imported where it is used: it takes a second that most commands do not need.
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return {"fpr": GRID.tolist(), "tpr": [float(_rate(fpr, tpr, at)) for at in GRID]}


def histograms(sets: dict[str, Set], bins: int = 40) -> dict[str, Any]:
    """Return shares of each set's deployments in common bins, up to the 99.5th percentile of all scores.

    Plain data: `edges` (bins + 1) and `shares` by set; scores beyond the last edge count in the last bin.
    """
    held = {name: s.scores[s.members].double().numpy() for name, s in sets.items() if bool(s.members.any())}
    everything = np.concatenate(list(held.values()))
    low, high = float(everything.min()), float(np.quantile(everything, 0.995))
    edges = np.linspace(low, high if high > low else low + 1e-9, bins + 1)
    shares = {
        name: (np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / len(values)).tolist()
        for name, values in held.items()
    }
    return {"edges": edges.tolist(), "shares": shares}


def _flat(positive: Set, negative: Set) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    if len(positive.scores) != len(negative.scores):
        raise InputError(
            f"the sets have {len(positive.scores)} and {len(negative.scores)} images; needed: the same images"
        )
    scores = [s.scores[s.members].double().numpy() for s in (positive, negative)]
    image = [s.members.nonzero()[:, 0].numpy() for s in (positive, negative)]
    truth = np.concatenate([np.ones(len(scores[0]), bool), np.zeros(len(scores[1]), bool)])
    return np.concatenate(scores), truth, np.concatenate(image)


def resampled(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Return (repeats, 4): AUROC, AUPR and both detection rates under each row of weights.

    What scikit-learn computes one by one; sorting once for all repeats makes the bootstrap affordable.

    Args:
        scores: (m,).
        truth: (m,), which are positive.
        weights: (repeats, m), at least 0, with positives and negatives of positive weight in each row.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    ordered, right = weights[:, order], truth[order]
    hits, alarms = ((ordered * mask).cumsum(1)[:, last] for mask in (right, ~right))
    tpr, fpr = (np.pad(c / c[:, -1:], ((0, 0), (1, 0))) for c in (hits, alarms))
    rises, widths = np.diff(tpr), np.diff(fpr)
    area = (widths * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(1)
    total = hits + alarms
    precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    rates = [np.where(fpr <= at + 1e-12, tpr, 0.0).max(1) for at in (0.05, 0.01)]
    return np.stack([area, (rises * precision).sum(1), *rates], 1)


def _figures(scores: Floats, truth: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    from sklearn.metrics import auc, average_precision_score, roc_curve

    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    aupr = float(average_precision_score(truth, scores))
    return float(auc(fpr, tpr)), aupr, _rate(fpr, tpr, 0.05), _rate(fpr, tpr, 0.01)


def _rate(fpr: Floats, tpr: Floats, at: float) -> float:
    """Return the highest detection rate whose false-alarm rate is at most `at`; nothing is interpolated."""
    return float(tpr[fpr <= at + 1e-12].max())
