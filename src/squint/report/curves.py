"""Figures with lines: accuracy against eps, loss terms over training, information against accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from squint.report.fields import Interval
from squint.report.plane_page import system_names, threat_names, trajectory
from squint.report.results import PlanePoint, Record, Results
from squint.report.run import Epoch
from squint.report.style import (
    FOREGROUND,
    PALETTE,
    FigureFiles,
    Scheme,
    legend_below,
    line,
    new_figure,
    panels,
    render,
    shorten,
)
from squint.report.table import norm_name, percent, select

MOST_BANDS = 8
"""Lines above this number are drawn without the bands of their intervals, which would cover each other."""
_TWO_COLUMNS = 8


def accuracy_figure(results: Results) -> FigureFiles | None:
    """Return accuracy against eps, or None where nothing was measured.

    Under the headline attack, unless another was run at more radii: a ladder at one radius is no curve.
    """
    attacks = dict.fromkeys([results.headline_attack, *(r.attack for r in results.records)])
    widest = max(attacks, key=lambda attack: len({r.radius for r in results.records if r.attack == attack}))
    series = {name: _eps_series(results, name, widest) for name in results.names()}
    series = {name: records for name, records in series.items() if records}
    if not series:
        return None
    everything = [record for records in series.values() for record in records]
    presets = list(dict.fromkeys(r.preset_name for r in everything))
    attack = everything[0].attack_name
    sizes = sorted({r.n for r in everything})
    bands = "the bands are 95 % intervals over images, " if len(series) <= MOST_BANDS else ""
    images = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"

    def draw(scheme: Scheme) -> Figure:
        figure = new_figure(3.9)
        axes = figure.subplots()
        handles: dict[str, Any] = {}
        for name, records in series.items():
            look = line(results.names().index(name), scheme)  # a system looks the same in every figure
            points = [
                _clean_point(records[0]),
                *((255 * r.radius, r.robust_accuracy, r.ci95) for r in records),
            ]
            x, y = [p[0] for p in points], [100 * p[1] for p in points]
            low = [100 * p[2][0] for p in points]
            high = [100 * p[2][1] for p in points]
            if len(series) <= MOST_BANDS:
                axes.fill_between(x, low, high, color=look.color, alpha=0.16, linewidth=0)
            (handle,) = axes.plot(x, y, color=look.color, marker=look.marker, ls=look.dashes, ms=5, lw=1.6)
            handles[name] = handle
        axes.set_xlabel(f"{norm_name(everything[0].norm)} eps, in 1/255")
        axes.set_ylabel("accuracy, %")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        legend_below(figure, list(handles.values()), _legend_names(results, list(handles)))
        return figure

    words = "; ".join(
        f"{results.title(name)}: {percent(records[0].clean_accuracy)} % clean, "
        + ", ".join(f"{percent(r.robust_accuracy)} % at {r.eps}" for r in records)
        for name, records in series.items()
    )
    return render(
        "accuracy_vs_eps",
        "Accuracy against eps",
        f"Accuracy under {attack} ({'; '.join(presets)}) over {images} {results.images}; {bands}"
        "the points at eps 0 are clean accuracy.",
        f"Accuracy against eps under {attack}. {words}.",
        draw,
    )


def _eps_series(results: Results, system: str, attack: str) -> list[Record]:
    """Return one record per radius above 0, in the norm of the first one found, by radius."""
    radii = sorted({r.radius for r in results.records if r.system == system and r.radius > 0})
    found = [record for radius in radii if (record := select(results, system, radius, attack)) is not None]
    return [record for record in found if record.norm == found[0].norm]


def _clean_point(record: Record) -> tuple[float, float, Interval]:
    accuracy = record.clean_accuracy
    return 0.0, accuracy, record.clean_ci95 or (accuracy, accuracy)


def _legend_names(results: Results, systems: Sequence[str]) -> list[str]:
    """Return titles for a legend: of a line's length, or of half a line's where there are many."""
    return [shorten(results.title(system), 84 if len(systems) <= 6 else 38) for system in systems]


def losses_figure(results: Results, epochs: dict[str, list[Epoch]]) -> FigureFiles | None:
    """Return the loss terms over training, one panel per system, or None where no epoch was logged."""
    known = [name for name in results.names() if epochs.get(name)]
    systems = known + [name for name in epochs if name not in known]
    seen = [epoch.terms for name in systems for epoch in epochs[name]]
    terms = list(dict.fromkeys(term for named in seen for term, value in named.items() if value))
    terms.sort(key=lambda term: term == "total")
    if not terms:
        return None

    def draw(scheme: Scheme) -> Figure:
        columns = 2 if len(systems) <= _TWO_COLUMNS else 3
        figure = new_figure(0.5 + (2.3 if columns == 2 else 1.7) * -(-len(systems) // columns))
        handles: dict[str, Any] = {}
        for axes, name in zip(panels(figure, len(systems), columns), systems, strict=True):
            history = epochs[name]
            for i, term in enumerate(terms):
                values = [epoch.terms.get(term, math.nan) for epoch in history]
                if not any(values) or all(map(math.isnan, values)):
                    continue
                total = term == "total"  # wide and below: with a single other term the two coincide
                look = line(PALETTE.index(FOREGROUND) if total else i, scheme)
                (handles[term],) = axes.plot(
                    [epoch.epoch for epoch in history],
                    values,
                    color=look.color,
                    ls=look.dashes,
                    lw=4 if total else 1.4,
                    alpha=0.3 if total else 1,
                    zorder=1.5 if total else 2,
                    marker="" if total else look.marker,
                    ms=4,
                    markevery=max(1, len(history) // 6),
                )
            axes.set_title(shorten(results.title(name), 40 if columns == 2 else 26), loc="left")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.supylabel("loss term", fontsize=10)
        legend_below(figure, list(handles.values()), [term.replace("_", " ") for term in handles])
        return figure

    return render(
        "loss_terms",
        "Loss terms over training",
        "Means over each epoch, as they enter the total, one panel per system with its own scale. "
        "Terms that stay zero are left out.",
        "Loss terms over training. "
        + "; ".join(_final_terms(results, name, epochs[name]) for name in systems),
        draw,
    )


def _final_terms(results: Results, name: str, history: Sequence[Epoch]) -> str:
    last = history[-1]
    words = ", ".join(f"{term.replace('_', ' ')} {value:.3g}" for term, value in last.terms.items() if value)
    validation = (
        f", validation accuracy {percent(last.validation_accuracy)} %" if last.validation_accuracy else ""
    )
    return f"{results.title(name)} after epoch {last.epoch}: {words}{validation}"


def plane_figure(results: Results) -> FigureFiles | None:
    """Return information against accuracy, one panel per system, or None where none was measured.

    Of several estimators the first one is drawn; the page's own drawing has all.
    """
    if not results.plane:
        return None
    plane = [p for p in results.plane if p.estimator == results.plane[0].estimator]
    threats, systems = threat_names(plane), system_names(results)

    def draw(scheme: Scheme) -> Figure:
        rows = -(-len(systems) // 2)
        figure = new_figure(0.5 + 2.7 * rows)
        handles: dict[str, Any] = {}
        first: Axes | None = None
        for axes, system in zip(panels(figure, len(systems)), systems, strict=True):
            for i, threat in enumerate(threats):
                points = trajectory(plane, system, threat)
                if not points:
                    continue
                look, largest = line(i, scheme), max(p.radius for p in points) or 1.0
                x = [p.information - p.baseline for p in points]
                y = [100 * p.accuracy for p in points]
                handles[threat], *_ = axes.plot(
                    x, y, color=look.color, ls=look.dashes, marker=look.marker, ms=4, lw=1.2
                )
                for p, px, py in zip(points, x, y, strict=True):
                    _cross(axes, p, px, look.color)
                    size = 20 + 110 * p.radius / largest
                    axes.scatter([px], [py], s=size, color=look.color, marker=look.marker, alpha=0.75, lw=0)
                    if p.radius == 0:
                        axes.scatter([px], [py], s=150, facecolor="none", edgecolor=scheme.text, lw=1.4)
            axes.set_title(shorten(results.title(system), 40), loc="left")
            axes.set_ylim(0, 104)  # room for the ring of a clean point at 100
            axes.set_xlabel("information, nats")
            axes.set_ylabel("accuracy, %")
            if first is None:
                first = axes
            else:
                axes.sharex(first)
        legend_below(figure, list(handles.values()), [shorten(threat, 38) for threat in handles])
        return figure

    sizes = sorted({p.n for p in plane})
    radii = {p.radius: p.eps if p.radius else "0" for p in sorted(plane, key=lambda p: p.radius)
             if p.strength is None}  # fmt: skip
    strengths = " and with a corruption's strength" if any(p.strength for p in plane) else ""
    words = "; ".join(
        f"{results.title(p.system)}, {p.threat}, {p.eps if p.strength else f'eps {p.eps}'}: "
        f"{p.information - p.baseline:.3f} nats, {percent(p.accuracy)} %"
        for p in plane
    )
    return render(
        "information_plane",
        "Information against accuracy",
        "Mutual information between members, less its shuffled baseline, under small attack budgets. One "
        "panel per system, one line per threat model. Markers grow with eps "
        f"({', '.join(radii.values())}){strengths}; "
        f"the ringed point is clean. Crosses are 95 % intervals; n = {', '.join(f'{n:,}' for n in sizes)}.",
        f"Mutual information between members against accuracy. {words}.",
        draw,
    )


def _cross(axes: Axes, p: PlanePoint, x: float, color: str) -> None:
    """Draw a point's intervals; that of the information moves with the baseline it is measured from."""
    if p.information_ci95 is not None:
        ends = [end - p.baseline for end in p.information_ci95]
        axes.plot(ends, [100 * p.accuracy] * 2, color=color, lw=0.8, alpha=0.7)
    if p.accuracy_ci95 is not None:
        axes.plot([x, x], [100 * end for end in p.accuracy_ci95], color=color, lw=0.8, alpha=0.7)
