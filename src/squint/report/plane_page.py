"""The information plane to explore: a drawing per system whose points say what they are, without any script.

Hovering a point shows its setting and figures, hovering a line lifts it out, and boxes switch threat models
on and off: all of it is the browser's own, by `<title>` and style rules, so the page still runs nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from squint.evaluation.plane_profile import PlaneProfile, PlaneRow, profile_of
from squint.evaluation.threats import CLEAN
from squint.report.results import PlanePoint, Results
from squint.report.style import DASHES, FOREGROUND, PALETTE
from squint.report.table import interval, percent

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 22, 14, 42
_STROKES = dict(zip(DASHES, ("none", "6 3", "6 3 1.5 3", "1.5 3"), strict=True))
ESTIMATOR_NAMES = {
    "soft_label": "Information of predictions",
    "soft_label_conditional": "Information of predictions given the label",
    "renyi": "Rényi information of features",
    "renyi_conditional": "Rényi information of features given the label",
}


@dataclass(frozen=True)
class Dot:
    """One point of a drawing, in its pixels."""

    x: float
    y: float
    r: float
    clean: bool
    text: str
    across: tuple[float, float] | None
    down: tuple[float, float] | None


@dataclass(frozen=True)
class Trail:
    """One threat model's trajectory; `place` is its place in the list of threats."""

    threat: str
    place: int
    color: str
    dashes: str
    dots: tuple[Dot, ...]

    @property
    def path(self) -> str:
        """The line through the points, as SVG writes it."""
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


@dataclass(frozen=True)
class Drawing:
    """One system under one estimator."""

    title: str
    trails: tuple[Trail, ...]


@dataclass(frozen=True)
class Sheet:
    """All systems under one estimator, on common axes; ticks are (pixel, label)."""

    title: str
    drawings: tuple[Drawing, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    points: tuple[PlanePoint, ...]


def plane_fragment(results: Results) -> Markup | None:
    """Return the plane as HTML that stands for itself within the page, or None where none was measured."""
    if not results.plane:
        return None
    threats = threat_names(results.plane)
    estimators = list(dict.fromkeys(p.estimator for p in results.plane))
    sheets = [_sheet(results, name, threats) for name in estimators]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, interval=interval)
    template = resources.files("squint.report").joinpath("plane.html.j2").read_text(encoding="utf-8")
    profile = plane_profile(results)
    return Markup(
        environment.from_string(template).render(
            threats=[(name, *_look(place)) for place, name in enumerate(threats)],
            sheets=sheets,
            results=results,
            correlation=profile.correlation,
            left_out=profile.leave_one_out,
            names=ESTIMATOR_NAMES,
            frame=(_LEFT, _TOP, WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM),
            size=(WIDTH, HEIGHT),
        )
    )


def plane_csv(results: Results) -> str:
    """Return the plane's rows as text with commas; what a row does not have is left empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    figures = ("information", "baseline", "accuracy", "n")
    columns = ("system", "threat", "eps", "strength", *figures, "estimator", "layer", "draws")
    ends = [f"{name}_ci95_{end}" for name in ("information", "accuracy") for end in ("low", "high")]
    writer.writerow([*columns, *ends])
    for p in results.plane:
        intervals = [*(p.information_ci95 or ("", "")), *(p.accuracy_ci95 or ("", ""))]
        writer.writerow([*(getattr(p, name) for name in columns), *intervals])
    return buffer.getvalue()


def plane_profile(results: Results) -> PlaneProfile:
    """Return correlation and prediction over the rows of a run; wherever it is filed, eps 0 is clean."""
    return profile_of(
        PlaneRow(
            system=p.system,
            threat=CLEAN if p.radius == 0 else p.threat,
            eps=p.eps,
            strength=p.strength,
            information=p.information,
            baseline=p.baseline,
            information_ci95=p.information_ci95 or (p.information, p.information),
            accuracy=p.accuracy,
            accuracy_ci95=p.accuracy_ci95 or (p.accuracy, p.accuracy),
            n=p.n,
            estimator=p.estimator,
            layer=p.layer,
            draws=p.draws or 0,
        )
        for p in results.plane
    )


def threat_names(plane: Sequence[PlanePoint]) -> list[str]:
    """Return the threats that have points of their own; the clean one alone where there is no other."""
    own = list(dict.fromkeys(p.threat for p in plane if p.radius > 0))
    return own or list(dict.fromkeys(p.threat for p in plane))


def trajectory(plane: Sequence[PlanePoint], system: str, threat: str) -> list[PlanePoint]:
    """Return a system's points under a threat, the clean one first, under whatever threat it is filed."""
    own = [p for p in plane if p.system == system and p.threat == threat]
    if own and all(p.radius > 0 for p in own):
        own += [p for p in plane if p.system == system and p.radius == 0][:1]
    return sorted(own, key=lambda p: p.radius)


def system_names(results: Results) -> list[str]:
    """Return the systems that have points, in the order of the file."""
    seen = dict.fromkeys(p.system for p in results.plane)
    known = [name for name in results.names() if name in seen]
    return known + [name for name in seen if name not in known]


def _sheet(results: Results, estimator: str, threats: Sequence[str]) -> Sheet:
    plane = [p for p in results.plane if p.estimator == estimator]
    ends = [p.information - p.baseline for p in plane]
    ends += [end - p.baseline for p in plane for end in p.information_ci95 or ()]
    steps = MaxNLocator(6).tick_values(min(0.0, *ends), max(1e-3, *ends))
    low, high = float(steps[0]), float(steps[-1])

    def across(nats: float) -> float:
        return _LEFT + (nats - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def down(accuracy: float) -> float:
        return HEIGHT - _BOTTOM - accuracy * (HEIGHT - _TOP - _BOTTOM)

    def dot(p: PlanePoint, largest: float) -> Dot:
        nats, ci = p.information - p.baseline, p.information_ci95
        return Dot(
            across(nats),
            down(p.accuracy),
            3 + 4 * p.radius / largest,
            p.radius == 0,
            _words(p),
            None if ci is None else (across(ci[0] - p.baseline), across(ci[1] - p.baseline)),
            None if p.accuracy_ci95 is None else (down(p.accuracy_ci95[0]), down(p.accuracy_ci95[1])),
        )

    drawings = []
    for system in system_names(results):
        trails = []
        for place, threat in enumerate(threats):
            points = trajectory(plane, system, threat)
            if points:
                largest = max(p.radius for p in points) or 1.0
                color, dashes = _look(place)
                dots = tuple(dot(p, largest) for p in points)
                trails.append(Trail(threat, place, color, dashes, dots))
        if trails:
            drawings.append(Drawing(results.title(system), tuple(trails)))
    return Sheet(
        ESTIMATOR_NAMES.get(estimator, estimator),
        tuple(drawings),
        tuple((across(float(value)), f"{round(float(value), 9):g}") for value in steps),
        tuple((down(value / 100), str(value)) for value in range(0, 101, 20)),
        tuple(plane),
    )


def _words(p: PlanePoint) -> str:
    setting = "clean" if p.radius == 0 else f"{p.threat}, {p.eps if p.strength else f'eps {p.eps}'}"
    return (
        f"{setting}: {p.information - p.baseline:.3f} nats ({p.information:.3f} less {p.baseline:.3f} of "
        f"shuffled pairs), {percent(p.accuracy)} % {interval(p.accuracy_ci95)}, n = {p.n:,}"
    )


def _look(place: int) -> tuple[str, str]:
    """Return a line's colour and dashes as style sheets write them."""
    color = PALETTE[place % len(PALETTE)]
    dashes = _STROKES[DASHES[place // len(PALETTE) % len(DASHES)]]
    return ("var(--text)" if color == FOREGROUND else color), dashes
