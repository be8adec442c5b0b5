"""Robust accuracy against what a prediction costs: who gives more for less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from squint.report.costs import short_count
from squint.report.fields import Interval
from squint.report.labels import Box, line_box, place_labels
from squint.report.results import Results
from squint.report.style import (
    FigureFiles,
    Scheme,
    legend_below,
    line,
    new_figure,
    render,
    shorten,
)
from squint.report.table import TIERS, TableRow, interval, norm_name, percent

MOST_NAMES = 20
"""Systems above this number are named only on the front, with the headline's."""
LEAST_SPREAD = 3.0
"""Dearest over cheapest system: with less there is no cost to speak of, and no drawing."""
_SIDE_BY_SIDE = 0.07  # decades between systems of equal cost, where there is room
_ALIKE = math.log10(1.2)  # decades within which a cost joins its neighbour
_TIER_LOOKS = {tier: place for place, tier in enumerate(TIERS)}


@dataclass(frozen=True)
class Candidate:
    """One system: what a prediction costs in bit operations, and how accurate it is under attack.

    `x` is where it is drawn: systems of much the same cost stand side by side.
    """

    system: str
    title: str
    tier: str
    bit_operations: int
    robust: float
    ci95: Interval
    clean: float
    trusted: bool
    on_front: bool
    x: float
    named: bool


def candidates(results: Results, rows: Sequence[TableRow]) -> list[Candidate]:
    """Return the systems with a cost and a figure, the most robust first; none where costs are alike.

    Args:
        results: of the run.
        rows: of the comparison.
    """
    costs = {system.name: system.bit_operations for system in results.systems}
    known = [
        (row, cost)
        for row in rows
        if row.record is not None and row.robust is not None and (cost := costs.get(row.system))
    ]
    prices = [math.log10(price) for _, price in known]
    if len(known) < 2 or max(prices) - min(prices) < math.log10(LEAST_SPREAD):
        return []
    found, drawn = [], side_by_side([(row.system, cost) for row, cost in known])
    for row, cost in known:
        assert row.robust is not None
        assert row.ci95 is not None
        assert row.clean is not None
        beaten = any(
            other.robust >= row.robust and price <= cost and (other.robust, -price) != (row.robust, -cost)
            for other, price in known
            if other.robust is not None
        )
        found.append(
            Candidate(
                row.system,
                row.title,
                row.tier,
                cost,
                row.robust,
                row.ci95,
                row.clean,
                row.trusted,
                not beaten,
                drawn[row.system],
                len(known) <= MOST_NAMES or not beaten or row.system == results.headline_system,
            )
        )
    return found


def side_by_side(costs: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Return where each system is drawn: a cost less than a fifth from the next is drawn beside it, in order.

    Args:
        costs: systems and what they cost, at least two of them far apart.
    """
    groups: list[list[tuple[str, int]]] = []
    for name, cost in sorted(costs, key=lambda each: each[1]):
        if groups and math.log10(cost / groups[-1][-1][1]) < _ALIKE:
            groups[-1].append((name, cost))
        else:
            groups.append([(name, cost)])
    centres = [sum(math.log10(cost) for _, cost in group) / len(group) for group in groups]
    found = {}
    for group, centre in zip(groups, centres, strict=True):
        room = min((abs(other - centre) for other in centres if other != centre), default=1.0)
        step = min(_SIDE_BY_SIDE, 0.8 * room / len(group))
        for place, (name, _) in enumerate(group):
            found[name] = 10 ** (centre + (place - (len(group) - 1) / 2) * step)
    return found


def front_of(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the systems that no other beats in both accuracy and cost, the cheapest first."""
    return sorted((each for each in found if each.on_front), key=lambda each: each.bit_operations)


def front_path(found: Sequence[Candidate]) -> list[tuple[float, float]]:
    """Return the corners of the line along the front: for each cost the highest accuracy that it buys."""
    path: list[tuple[float, float]] = []
    for each in front_of(found):
        if path:
            path.append((each.x, path[-1][1]))
        path.append((each.x, each.robust))
    return path


def pareto_figure(results: Results, rows: Sequence[TableRow]) -> FigureFiles | None:
    """Return robust accuracy against bit operations per prediction, or None without costs that differ."""
    found = candidates(results, rows)
    if not found:
        return None
    sizes = sorted({row.n for row in rows if row.n})
    images = " to ".join(f"{n:,}" for n in dict.fromkeys((sizes[0], sizes[-1])))
    record = next(row.record for row in rows if row.record is not None)
    tiers = [tier for tier in TIERS if any(each.tier == tier for each in found)]

    def draw(scheme: Scheme) -> Figure:
        figure = new_figure(5.2)
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_xlim(*limits(found))
        top = max(each.ci95[1] for each in found)
        axes.set_ylim(-3, min(104.0, 100 * top + 8))
        handles: dict[str, Any] = {}
        path = front_path(found)
        if len(path) > 1:
            (handles["not beaten in both"],) = axes.plot(
                [x for x, _ in path],
                [100 * accuracy for _, accuracy in path],
                color=scheme.text,
                lw=1.0,
                ls=":",
                zorder=1.5,
            )
        for each in found:
            look = line(_TIER_LOOKS.get(each.tier, 6), scheme)
            headline = each.system == results.headline_system
            low, high = max(each.ci95[0], 0.0), min(each.ci95[1], 1.0)
            axes.plot([each.x] * 2, [100 * low, 100 * high], color=look.color, lw=1.1, alpha=0.4)
            place = [each.x], [100 * each.robust]
            (dot,) = axes.plot(*place, color=look.color, marker=look.marker, ls="", ms=6)
            handles.setdefault(f"tier {each.tier}", dot)
            if headline:
                axes.plot(*place, color=scheme.text, marker="o", ls="", ms=12, mfc="none", mew=1.3)
        ticks = cost_ticks(*limits(found))
        axes.set_xticks(ticks, [short_count(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("bit operations per prediction, over all members and draws")
        axes.set_ylabel("robust accuracy, %")
        order = [f"tier {tier}" for tier in tiers] + ["not beaten in both"]
        shown = [name for name in order if name in handles]
        legend_below(figure, [handles[name] for name in shown], [_legend(name) for name in shown])
        _name(figure, found, results, scheme)
        return figure

    untrusted = sum(not each.trusted for each in found)
    words = "; ".join(
        f"{each.title}: {percent(each.robust)} % {interval(each.ci95)} at {each.bit_operations:.3g} bit "
        f"operations{', on the front' if each.on_front else ''}"
        for each in found
    )
    unnamed = "" if all(each.named for each in found) else " Only the front and the headline are named."
    return render(
        "pareto",
        "Robust accuracy against cost",
        f"Accuracy under {record.attack_name} at {norm_name(record.norm)} eps {results.headline_eps} against "
        "the bit operations of one deployed prediction, with 95 % intervals over "
        f"{images} images. Costs less than a fifth apart are drawn side by side. The dotted line joins the "
        "systems that no other beats in both. "
        f"{untrusted} of {len(found)} figures are untrusted.{unnamed}",
        f"Robust accuracy against bit operations per prediction. {words}.",
        draw,
    )


def cost_ticks(low: float, high: float) -> list[float]:
    """Return round costs between two ends: powers of ten, and 2 and 5 times them where they are few."""
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def naming_order(results: Results, found: Sequence[Candidate]) -> list[Candidate]:
    """Return the systems that are named in the drawing, the headline's first: it has the choice of places."""
    named = [each for each in found if each.named]
    return sorted(named, key=lambda each: each.system != results.headline_system)


def limits(found: Sequence[Candidate]) -> tuple[float, float]:
    """Return the ends of the cost axis, with room for names on the right."""
    low, high = min(each.x for each in found), max(each.x for each in found)
    span = max(math.log10(high / low), 0.5)
    return low * 10 ** (-0.08 * span), high * 10 ** (0.2 * span)


def _legend(name: str) -> str:
    words = {"A": "no input gradients", "B": "penalised input gradient", "C": "adversarial examples"}
    tier = name.removeprefix("tier ")
    return f"{name}: {words[tier]}" if tier in words else name


def _name(figure: Figure, found: Sequence[Candidate], results: Results, scheme: Scheme) -> None:
    """Write the names beside their points, measured as the figure will be drawn."""
    figure.draw_without_rendering()  # constrained layout moves the axes
    figure.set_layout_engine("none")
    axes = figure.axes[0]
    size, points = 7.5, naming_order(results, found)
    pixel = figure.dpi / 72

    def pixels(cost: float, accuracy: float) -> tuple[float, float]:
        x, y = axes.transData.transform((cost, 100 * accuracy))
        return float(x), float(y)

    def at(each: Candidate, accuracy: float) -> tuple[float, float]:
        return pixels(each.x, accuracy)

    names = [shorten(each.title, 40) for each in points]
    fonts = [
        FontProperties(size=size, weight="bold" if each.system == results.headline_system else "normal")
        for each in points
    ]
    bars = []
    for each in found:
        (x, low), (_, high) = at(each, max(each.ci95[0], 0.0)), at(each, min(each.ci95[1], 1.0))
        bars.append(Box(x - pixel, low, x + pixel, high))
    corners = [pixels(*corner) for corner in front_path(found)]
    bars += [line_box(*start, *end, pixel) for start, end in pairwise(corners)]
    frame = axes.get_window_extent()
    labels = place_labels(
        [at(each, each.robust) for each in points],
        [
            (float(TextPath((0, 0), name, prop=font).get_extents().width) + 3) * pixel
            for name, font in zip(names, fonts, strict=True)
        ],
        1.3 * size * pixel,
        5 * pixel,
        Box(frame.x0, frame.y0, frame.x1, frame.y1),
        bars,
    )
    back = axes.transData.inverted()
    for each, name, font, label in zip(points, names, fonts, labels, strict=True):
        box = label.box
        middle = (box.y0 + box.y1) / 2
        x, y = back.transform((box.x0 + pixel, middle))
        axes.text(x, y, name, fontproperties=font, va="center", ha="left", color=scheme.text)
        if label.led:
            px = at(each, each.robust)[0]
            end = back.transform((min(max(px, box.x0), box.x1), middle))
            if box.x0 < px < box.x1:
                above = middle > at(each, each.robust)[1]
                end = back.transform((px, box.y0 + pixel if above else box.y1 - pixel))
            axes.plot([each.x, end[0]], [100 * each.robust, end[1]], color=scheme.text, lw=0.5, alpha=0.7)
