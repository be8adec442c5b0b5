"""The points of an information plane, and what information says about accuracy over all of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from squint._checks import InputError
from squint.evaluation.plane_statistics import EVERY, leave_one_out, spearman, spearman_interval


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
            correlation of information (less its baseline) and accuracy (`spearman`), its bootstrap interval
            over threat models (`spearman_ci95`), and the number of points. There is no p-value, and the
            interval says nothing of other images: the points share theirs. None where either does not vary,
            and no interval below three threat models.
        leave_one_out: one entry per estimator and threat model: mean absolute error of the accuracy that
            information predicts for a threat model that was left out, by isotonic regression on the points of
            all others (`error`), beside the error of always saying their mean accuracy (`constant_error`);
            and both again where its whole `family` (see `plane_statistics.FAMILIES`) was left out with it
            (`family_error`, `family_constant_error`): L∞ PGD says much of L2 PGD, and little
            of blur. All corruptions are left out together; the clean points are always known.
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
            f"{e['estimator']}, {e['system']}: rank correlation {_text(e['spearman'])}"
            f"{_interval_text(e['spearman_ci95'])}, {e['points']} points"
            for e in self.correlation
        ]
        lines += [
            f"{e['estimator']}, {e['threat']} left out: accuracy off by {_text(e['error'])} "
            f"({_text(e['constant_error'])} by the mean); with all of its family left out "
            f"{_text(e['family_error'])} ({_text(e['family_constant_error'])})"
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
                    "spearman": spearman(points),
                    "spearman_ci95": spearman_interval(points),
                    "points": len(points),
                }
            )
        left_out += [{"estimator": estimator, **entry} for entry in leave_one_out(own)]
    return PlaneProfile(rows, tuple(correlation), tuple(left_out))


def _interval_text(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}] over threat models"


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
