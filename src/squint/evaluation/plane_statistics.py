"""What information says about accuracy over the points of a plane: rank correlation and prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from squint.evaluation.threats import CLEAN

if TYPE_CHECKING:  # the profile imports this module
    from squint.evaluation.plane_profile import PlaneRow

EVERY = "all"
"""Stands for all systems, or all threat models, in the summaries."""

FAMILIES = {
    "linf-pgd": "gradient",
    "l2-pgd": "gradient",
    "apgd": "gradient",
    "mora": "gradient",
    "square": "black box",
    "transfer": "black box",
    "transfer-members": "black box",
    "noise-linf": "noise",
    "noise-l2": "noise",
}
"""Threat models that work alike; "transfer" counts as a black box, for it does not ask the attacked model.
Corruptions are a family, too, and any other threat is one of its own."""

RESAMPLES = 400
_FEWEST_THREATS = 3


def _coordinates(rows: Sequence[PlaneRow]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([row.excess for row in rows]), np.array([row.accuracy for row in rows])


def spearman(rows: Sequence[PlaneRow]) -> float | None:
    """Return the rank correlation of information and accuracy, or None where either does not vary."""
    x, y = _coordinates(rows)
    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        return None
    # Imported here: scipy.stats takes a second that most commands do not need.
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)


def spearman_interval(rows: Sequence[PlaneRow]) -> tuple[float, float] | None:
    """Return a 95 % interval from resampled threat models, each with all its points; clean ones stay.

    Threat models, for the rows do not say what single images did. None where there are too few of them, or
    where neighbouring points leave nothing to rank.
    """
    threats = list(dict.fromkeys(row.threat for row in rows if row.threat != CLEAN))
    if len(threats) < _FEWEST_THREATS or spearman(rows) is None:
        return None
    from scipy.stats import rankdata

    x, y = _coordinates(rows)
    names = np.array([row.threat for row in rows])
    clean = np.flatnonzero(names == CLEAN)
    places = [np.flatnonzero(names == threat) for threat in threats]
    generator, values = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(threats), size=len(threats))
        at = np.concatenate([clean, *(places[i] for i in drawn)])
        if np.ptp(x[at]) > 0 and np.ptp(y[at]) > 0:
            values.append(np.corrcoef(rankdata(x[at]), rankdata(y[at]))[0, 1])
    if len(values) < RESAMPLES / 2:
        return None
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return float(low), float(high)


def leave_one_out(rows: Sequence[PlaneRow]) -> list[dict[str, Any]]:
    """Return one entry per group of threats that can be left out, and their mean over points."""
    groups = dict.fromkeys(_group(row) for row in rows if row.threat != CLEAN)
    entries: list[dict[str, Any]] = []
    for group in groups:
        family = _family(group)
        held = [row for row in rows if row.threat != CLEAN and _group(row) == group]
        others = [row for row in rows if row.threat == CLEAN or _group(row) != group]
        strangers = [row for row in others if row.threat == CLEAN or _family(_group(row)) != family]
        error, constant = _errors(others, held)
        family_error, family_constant = _errors(strangers, held)
        entries.append(
            {
                "threat": group,
                "family": family,
                "points": len(held),
                "error": error,
                "constant_error": constant,
                "family_error": family_error,
                "family_constant_error": family_constant,
            }
        )
    if len(entries) > 1 and any(entry["error"] is not None for entry in entries):
        points = sum(entry["points"] for entry in entries)
        names = ("error", "constant_error", "family_error", "family_constant_error")
        means = {name: _mean_over_points(entries, name) for name in names}
        entries.append({"threat": EVERY, "family": EVERY, "points": points, **means})
    return entries


def _mean_over_points(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean of an error over all points, or None where it is unknown for some of them."""
    if any(entry[name] is None for entry in entries):
        return None
    points: int = sum(entry["points"] for entry in entries)
    total = math.fsum(entry[name] * entry["points"] for entry in entries)
    return total / float(points)


def _errors(known: Sequence[PlaneRow], held: Sequence[PlaneRow]) -> tuple[float | None, float | None]:
    """Return how far information misses the held points' accuracy, and how far the known mean does."""
    if len({row.excess for row in known}) < 2:
        return None, None
    # Imported where it is used: it takes a second that most commands do not need.
    from sklearn.isotonic import IsotonicRegression

    (x, y), (new_x, new_y) = _coordinates(known), _coordinates(held)
    rising = (spearman(known) or 0.0) >= 0
    fitted = IsotonicRegression(increasing=rising, out_of_bounds="clip").fit(x, y)
    return float(np.abs(fitted.predict(new_x) - new_y).mean()), float(np.abs(y.mean() - new_y).mean())


def _group(row: PlaneRow) -> str:
    """Return what is left out together: all corruptions, or one threat model."""
    return row.threat.partition(":")[0]


def _family(group: str) -> str:
    return FAMILIES.get(group, group)
