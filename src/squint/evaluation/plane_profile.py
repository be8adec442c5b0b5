"""The points of an information plane, and what information says about accuracy over all of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from squint._checks import InputError
from squint.evaluation.threats import CLEAN

EVERY = "all"
"""Stands for all systems, or all threat models, in the summaries."""


@dataclass(frozen=True)
class PlaneRow:
    """One point: a system under one setting of one threat model, measured by one estimator.

    Attributes:
        system: name of the system.
        threat: name of the threat model; "clean" for the point without any.
        eps: radius as a fraction, "0" for the clean point, "strength 3" for corruptions.
        strength: of a corruption, 1 to 5; None for all others.
        information: mean over pairs of members, in nats, as the estimator gives it.
        baseline: the same of shuffled pairs; what is plotted is the information less this.
        information_ci95: bootstrap interval of `information` over images.
        accuracy: deployed rule on draws of its own, a fraction.
        accuracy_ci95: Wilson interval over images.
        n: images.
        estimator: name of the estimator.
        layer: "predictions" or "features".
        draws: noise samples per member that a prediction averages before its information is measured.
    """

    system: str
    threat: str
    eps: str
    strength: int | None
    information: float
    baseline: float
    information_ci95: tuple[float, float]
    accuracy: float
    accuracy_ci95: tuple[float, float]
    n: int
    estimator: str
    layer: str
    draws: int

    @property
    def excess(self) -> float:
        """Information less its baseline, in nats."""
        return self.information - self.baseline

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {
            "information_ci95": list(self.information_ci95),
            "accuracy_ci95": list(self.accuracy_ci95),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlaneRow:
        """Return the row that `to_json` wrote; other keys are left out.

        Raises:
            squint.InputError: a field is missing, or an interval is no pair.
        """
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in data]
        if missing:
            raise InputError(f"a row of the plane has no {', '.join(missing)}")
        row = {name: data[name] for name in names}
        for name in ("information_ci95", "accuracy_ci95"):
            try:
                low, high = row[name]
            except (TypeError, ValueError):
                raise InputError(
                    f"a row of the plane has {name} {row[name]!r}; allowed: two numbers"
                ) from None
            row[name] = (float(low), float(high))
        return cls(**row)


@dataclass(frozen=True)
class PlaneProfile:
    """A plane: its points, and how information and accuracy go together.

    Attributes:
        rows: the points.
        correlation: one entry per estimator and system, and "all" where there are several: Spearman's rank
            correlation of information (less its baseline) and accuracy, and the number of points. There is no
            p-value: the points share their images. None where either does not vary.
        leave_one_out: one entry per estimator and threat model: mean absolute error of the accuracy that
            information predicts for a threat model that was left out, by isotonic regression on the points of
            all others (`error`), beside the error of always saying their mean accuracy (`constant_error`).
            All corruptions are left out together; the clean points are always known.
    """

    rows: tuple[PlaneRow, ...]
    correlation: tuple[dict[str, Any], ...]
    leave_one_out: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "correlation": [dict(entry) for entry in self.correlation],
            "leave_one_out": [dict(entry) for entry in self.leave_one_out],
        }

    def to_csv(self) -> str:
        """Return the rows as text with commas, intervals in two columns each."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        names = [f.name for f in fields(PlaneRow)]
        pairs = {name: (f"{name}_low", f"{name}_high") for name in names if name.endswith("ci95")}
        writer.writerow([column for name in names for column in pairs.get(name, (name,))])
        for row in self.rows:
            values = ((name, getattr(row, name)) for name in names)
            writer.writerow([v for name, value in values for v in (value if name in pairs else [value])])
        return buffer.getvalue()

    def __str__(self) -> str:
        """Return the correlations and prediction errors, one line each."""
        lines = [
            f"{e['estimator']}, {e['system']}: rank correlation {_text(e['spearman'])}, {e['points']} points"
            for e in self.correlation
        ]
        lines += [
            f"{e['estimator']}, {e['threat']} left out: accuracy off by {_text(e['error'])} "
            f"({_text(e['constant_error'])} by the mean)"
            for e in self.leave_one_out
        ]
        return "\n".join(lines)


def profile_of(rows: Iterable[PlaneRow]) -> PlaneProfile:
    """Return the profile of any rows, of several systems together if need be.

    Raises:
        squint.InputError: there are no rows.
    """
    rows = tuple(rows)
    if not rows:
        raise InputError("rows is empty; allowed: one point or more")
    correlation, left_out = [], []
    for estimator in dict.fromkeys(row.estimator for row in rows):
        own = [row for row in rows if row.estimator == estimator]
        systems = list(dict.fromkeys(row.system for row in own))
        for system in [*systems, *([EVERY] if len(systems) > 1 else [])]:
            points = [row for row in own if system in (row.system, EVERY)]
            correlation.append(
                {
                    "estimator": estimator,
                    "system": system,
                    "spearman": _spearman(points),
                    "points": len(points),
                }
            )
        left_out += [{"estimator": estimator, **entry} for entry in _leave_one_out(own)]
    return PlaneProfile(rows, tuple(correlation), tuple(left_out))


def _coordinates(rows: Sequence[PlaneRow]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([row.excess for row in rows]), np.array([row.accuracy for row in rows])


def _spearman(rows: Sequence[PlaneRow]) -> float | None:
    x, y = _coordinates(rows)
    if len(set(x.tolist())) < 2 or len(set(y.tolist())) < 2:
        return None
    # Imported here: scipy.stats takes a second that most commands do not need.
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)


def _leave_one_out(rows: Sequence[PlaneRow]) -> list[dict[str, Any]]:
    """Return one entry per group of threats that can be left out, and their mean over points."""
    groups = dict.fromkeys(_group(row) for row in rows if row.threat != CLEAN)
    # Imported where it is used: it takes a second that most commands do not need.
    from sklearn.isotonic import IsotonicRegression

    entries: list[dict[str, Any]] = []
    for group in groups:
        held = [row for row in rows if row.threat != CLEAN and _group(row) == group]
        known = [row for row in rows if row.threat == CLEAN or _group(row) != group]
        error = constant = None
        if len({row.excess for row in known}) > 1:
            (x, y), (new_x, new_y) = _coordinates(known), _coordinates(held)
            rising = (_spearman(known) or 0.0) >= 0
            fitted = IsotonicRegression(increasing=rising, out_of_bounds="clip").fit(x, y)
            error = float(np.abs(fitted.predict(new_x) - new_y).mean())
            constant = float(np.abs(y.mean() - new_y).mean())
        entries.append({"threat": group, "points": len(held), "error": error, "constant_error": constant})
    told = [entry for entry in entries if entry["error"] is not None]
    if len(told) > 1:
        points = sum(entry["points"] for entry in told)
        means = {
            name: math.fsum(entry[name] * entry["points"] for entry in told) / points
            for name in ("error", "constant_error")
        }
        entries.append({"threat": EVERY, "points": points, **means})
    return entries


def _group(row: PlaneRow) -> str:
    """Return what is left out together: all corruptions, or one threat model."""
    return row.threat.partition(":")[0]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
