"""Detection as a part of the page: tables, and ROC curves whose points say what they are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from squint.report.detection import Detected, Detection
from squint.report.detection_figures import area, attack_names, shown
from squint.report.results import Results
from squint.report.style import FOREGROUND, PALETTE
from squint.report.table import interval, percent

WIDTH, HEIGHT = 460, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 16, 14, 42
_MARKED = (0.01, 0.05, 0.1, 0.2, 0.5)
"""False-alarm rates whose points can be pointed at."""


@dataclass(frozen=True)
class Curve:
    """One attack's ROC curve in pixels, with words for the line and for each marked point (x, y, words)."""

    words: str
    place: int
    color: str
    dashes: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Panel:
    """One detector at one eps."""

    title: str
    alarm: float
    curves: tuple[Curve, ...]


def detection_fragment(detection: Detection | None, results: Results) -> Markup | None:
    """Return detection as HTML that stands for itself within the page, or None where none was measured."""
    if detection is None or not detection.records:
        return None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, interval=interval, area=area)
    template = resources.files("squint.report").joinpath("detection.html.j2").read_text(encoding="utf-8")
    names = attack_names(detection)
    aware = {a.attack for r in detection.records for a in r.attacks if a.adaptive}
    return Markup(
        environment.from_string(template).render(
            detection=detection,
            results=results,
            sentences=[(sentence(r, results), r) for r in detection.records],
            flags=flag_lines(detection, results),
            names=[(name, _color(place), _dashes(name in aware), name in aware)
                   for place, name in enumerate(names)],
            panels=[_panel(r, results, names) for r in shown(detection, results)],
            x_ticks=[(_across(value / 100), str(value)) for value in range(0, 101, 20)],
            y_ticks=[(_down(value / 100), str(value)) for value in range(0, 101, 20)],
            chance=f"{_across(0)},{_down(0)} {_across(1)},{_down(1)}",
            frame=(_LEFT, _TOP, WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM),
            size=(WIDTH, HEIGHT),
        )
    )  # fmt: skip


def sentence(r: Detected, results: Results) -> str:
    """Return the headline of one detector: under attacks on it first, and what they leave beside it."""
    return (
        f"{results.title(r.system)} with the detector {r.score.replace('_', ' ')}, at eps {r.eps} and "
        f"{percent(r.false_alarm_rate)} % stated false alarms: {percent(r.accuracy)} % right or flagged "
        f"{interval(r.ci95)} and AUROC {area(r.adaptive_auroc)} where the detector is attacked; "
        f"{percent(r.non_adaptive_accuracy)} % and AUROC {area(r.non_adaptive_auroc)} where it is not."
    )


def flag_lines(detection: Detection, results: Results) -> list[str]:
    """Return the red flags, those that several detectors of a system share in one line."""
    scores: dict[tuple[str, str, str], list[str]] = {}
    for r in detection.records:
        for flag in r.flags:
            place = results.title(r.system), r.eps, flag.message
            scores.setdefault(place, []).append(r.score.replace("_", " "))
    return [f"{title}, {eps}, {', '.join(of)}: {words}" for (title, eps, words), of in scores.items()]


def _panel(r: Detected, results: Results, names: list[str]) -> Panel:
    curves = []
    for attack in r.attacks:
        points = r.roc.get(attack.attack)
        if points is None or attack.area is None:
            continue
        kind = "on the detector" if attack.adaptive else "does not know the detector"
        words = f"{attack.attack} ({kind}): AUROC {area(attack.area.auroc)} {_range(attack.area.auroc_ci95)}"
        dots = tuple(
            (
                _across(x),
                _down(y),
                f"{attack.attack}: {percent(x)} % false alarms, {percent(y)} % of its successes flagged",
            )
            for x, y in points
            if any(abs(x - marked) < 1e-9 for marked in _MARKED)
        )
        place = names.index(attack.attack)
        path = " ".join(f"{_across(x):.1f},{_down(y):.1f}" for x, y in points)
        curves.append(Curve(words, place, _color(place), _dashes(attack.adaptive), path, dots))
    title = f"{results.title(r.system)}, {r.score.replace('_', ' ')}, eps {r.eps}"
    return Panel(title, _across(r.false_alarm_rate), tuple(curves))


def _range(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def _across(rate: float) -> float:
    return _LEFT + rate * (WIDTH - _LEFT - _RIGHT)


def _down(rate: float) -> float:
    return HEIGHT - _BOTTOM - rate * (HEIGHT - _TOP - _BOTTOM)


def _color(place: int) -> str:
    color = PALETTE[place % len(PALETTE)]
    return "var(--text)" if color == FOREGROUND else color


def _dashes(adaptive: bool) -> str:
    return "none" if adaptive else "6 3"
