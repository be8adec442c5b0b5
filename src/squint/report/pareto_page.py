"""Accuracy against cost to explore: points that say what they are, and boxes that switch tiers on and off.

Like the information plane, it is the browser's own work, by `<title>` and style rules: the page runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.textpath import TextPath

from squint.report.costs import short_count
from squint.report.labels import Box, line_box, place_labels
from squint.report.pareto import Candidate, candidates, cost_ticks, front_path, limits, naming_order
from squint.report.results import Results, System
from squint.report.style import PALETTE, shorten
from squint.report.table import TIERS, TableRow, interval, percent

WIDTH, HEIGHT = 920, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 46
_FONT = 11.5
_Scale = Callable[[float], float]
_WIDER = 1.08  # than DejaVu Sans, a wide face: the page's font is the reader's own


@dataclass(frozen=True)
class Mark:
    """One system in the drawing's pixels; `line` leads from the point to a name that stands away from it.

    A name on the left of its point ends at `name_x`, another begins there.
    """

    tier: str
    x: float
    y: float
    low: float
    high: float
    headline: bool
    on_front: bool
    text: str
    name: str
    name_x: float
    name_y: float
    on_left: bool
    line: tuple[float, float] | None


def pareto_fragment(results: Results, rows: Sequence[TableRow]) -> Markup | None:
    """Return the drawing as HTML that stands for itself in the page, or None without costs that differ."""
    found = candidates(results, rows)
    if not found:
        return None
    first, last = (math.log10(end) for end in limits(found))
    top = min(1.04, max(each.ci95[1] for each in found) + 0.08)

    def across(cost: float) -> float:
        return _LEFT + (math.log10(cost) - first) / (last - first) * (WIDTH - _LEFT - _RIGHT)

    def down(accuracy: float) -> float:
        return HEIGHT - _BOTTOM - (accuracy + 0.03) / (top + 0.03) * (HEIGHT - _TOP - _BOTTOM)

    template = resources.files("squint.report").joinpath("pareto.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    path = [(across(x), down(accuracy)) for x, accuracy in front_path(found)]
    return Markup(
        environment.from_string(template).render(
            marks=_marks(results, found, path, across, down),
            tiers=[tier for tier in TIERS if any(each.tier == tier for each in found)],
            meanings=TIERS,
            colors=dict(zip(TIERS, PALETTE, strict=False)),
            front=" ".join(f"{x:.1f},{y:.1f}" for x, y in path) if len(path) > 1 else "",
            x_ticks=[(across(tick), short_count(tick)) for tick in cost_ticks(*limits(found))],
            y_ticks=[(down(value / 100), str(value)) for value in range(0, int(100 * top) + 1, 10)],
            frame=(_LEFT, _TOP, WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM),
            size=(WIDTH, HEIGHT),
            font=_FONT,
        )
    )


def _marks(
    results: Results,
    found: Sequence[Candidate],
    path: Sequence[tuple[float, float]],
    across: _Scale,
    down: _Scale,
) -> list[Mark]:
    """Return the points, and names beside those that have one."""
    systems = {system.name: system for system in results.systems}
    bars = [
        Box(across(e.x) - 1, down(min(e.ci95[1], 1)), across(e.x) + 1, down(max(e.ci95[0], 0))) for e in found
    ]
    named = naming_order(results, found)
    labels = place_labels(
        [(across(each.x), down(each.robust)) for each in named],
        [_WIDER * float(TextPath((0, 0), _short(each), size=_FONT).get_extents().width) for each in named],
        1.3 * _FONT,
        7.0,
        Box(_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
        [*bars, *(line_box(*start, *end, 1) for start, end in pairwise(path))],
    )
    boxes = {each.system: label for each, label in zip(named, labels, strict=True)}
    marks = []
    for each, bar in zip(found, bars, strict=True):
        x, label = across(each.x), boxes.get(each.system)
        middle = 0.0 if label is None else (label.box.y0 + label.box.y1) / 2
        end = 0.0 if label is None else min(max(x, label.box.x0), label.box.x1)
        marks.append(
            Mark(
                each.tier,
                x,
                down(each.robust),
                bar.y1,
                bar.y0,
                each.system == results.headline_system,
                each.on_front,
                _facts(each, systems.get(each.system)),
                "" if label is None else _short(each),
                0.0 if label is None else label.box.x1 if label.box.x1 < x else label.box.x0,
                middle,
                label is not None and label.box.x1 < x,
                (end, middle) if label is not None and label.led else None,
            )
        )
    return marks


def _short(each: Candidate) -> str:
    return shorten(each.title, 40)


def _facts(each: Candidate, system: System | None) -> str:
    words = [
        f"{each.title} (tier {each.tier}): robust {percent(each.robust)} % {interval(each.ci95)}",
        f"clean {percent(each.clean)} %",
        f"{short_count(each.bit_operations)} bit operations",
    ]
    if system is not None and system.stored_bits is not None:
        words.append(f"{short_count(system.stored_bits)} bits stored")
    if system is not None and system.training_compute is not None:
        words.append(f"training compute {system.compute}")
    return ", ".join([*words, "trusted" if each.trusted else "UNTRUSTED"])
