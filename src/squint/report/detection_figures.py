"""Figures of detection: ROC curves, histograms of the scores, accuracy with rejection against eps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from squint.report.detection import CLEAN, Detected, Detection
from squint.report.detection_rows import MOST_LINES, nearest, rows
from squint.report.results import Results
from squint.report.style import FigureFiles, Scheme, legend_below, line, new_figure, panels, render, shorten
from squint.report.table import norm_name, percent

MOST_PANELS = 12
_FLOOR = 1e-4  # shares below it are drawn there: a logarithm has no zero


def shown(detection: Detection, results: Results) -> tuple[Detected, ...]:
    """Return the records that have panels: those at the headline's eps first, up to `MOST_PANELS`."""
    ordered = sorted(detection.records, key=lambda r: abs(r.radius - results.headline_radius))
    return tuple(ordered[:MOST_PANELS])


def roc_figure(detection: Detection, results: Results) -> FigureFiles | None:
    """Return each attack's ROC curve, one panel per detector and eps, or None where nothing was measured."""
    records = shown(detection, results)
    if not any(_drawn(r) for r in records):
        return None
    names = attack_names(detection)

    def draw(scheme: Scheme) -> Figure:
        figure = new_figure(0.4 + 2.9 * -(-len(records) // 2))
        handles: dict[str, Any] = {}
        for axes, r in zip(panels(figure, len(records)), records, strict=True):
            axes.plot([0, 100], [0, 100], color=scheme.grid, lw=1.2, zorder=1)
            axes.axvline(100 * r.false_alarm_rate, color=scheme.text, lw=0.8, ls=":", zorder=1.5)
            for name, points in _drawn(r).items():
                look = line(names.index(name), scheme)
                (handles[_label(r, name)],) = axes.plot(
                    [100 * x for x, _ in points],
                    [100 * y for _, y in points],
                    color=look.color,
                    ls="-" if _adaptive(r, name) else "--",
                    lw=1.8 if _adaptive(r, name) else 1.2,
                )
            axes.set_title(panel_title(r, results, records), loc="left")
            axes.set_xlim(0, 100)
            axes.set_ylim(0, 101)
            axes.set_xlabel("false alarms, %")
            axes.set_ylabel("attacks flagged, %")
        legend_below(figure, list(handles.values()), list(handles))
        return figure

    words = "; ".join(
        f"{panel_title(r, results, records)}: AUROC {area(r.adaptive_auroc)} attacked by one who knows it, "
        f"{area(r.non_adaptive_auroc)} not"
        for r in records
    )
    return render(
        "detection_roc",
        "ROC curves of the detectors",
        "Deployments that an attack fooled against clean ones that are right. Solid: attacks on the "
        "detector itself; dashed: attacks that do not know it. The dotted line is the stated rate of false "
        f"alarms, the straight one is chance. {_what(records)}",
        f"ROC curves. {words}.",
        draw,
    )


def histogram_figure(detection: Detection, results: Results) -> FigureFiles | None:
    """Return how the scores are distributed, one panel per detector and eps, or None."""
    records = shown(detection, results)
    if not records:
        return None
    kinds = (
        "clean, right",
        "clean, wrong",
        "noise of equal size",
        "worst attack not on it",
        "worst attack on the detector",
    )

    def draw(scheme: Scheme) -> Figure:
        figure = new_figure(0.4 + 2.6 * -(-len(records) // 2))
        handles: dict[str, Any] = {}
        for axes, r in zip(panels(figure, len(records)), records, strict=True):
            for place, (kind, name) in enumerate(zip(kinds, _sets(r), strict=True)):
                if name not in r.shares:
                    continue
                look = line(place, scheme)
                heights = [max(share, _FLOOR) for share in r.shares[name]]
                handles[kind] = axes.stairs(
                    heights, r.edges, baseline=_FLOOR, color=look.color, ls=look.dashes, lw=1.5
                )
            axes.axvline(r.threshold, color=scheme.text, lw=1, ls=":")
            axes.set_yscale("log")
            axes.set_ylim(_FLOOR, 1)
            # Written out: the usual powers of ten are formulas, which this style does not read.
            axes.set_yticks([1, 0.1, 0.01, 0.001, _FLOOR], ["100", "10", "1", "0.1", "0.01"])
            axes.minorticks_off()
            axes.set_title(panel_title(r, results, records), loc="left")
            axes.set_xlabel(r.score.replace("_", " "))
            axes.set_ylabel("deployments, %")
        legend_below(figure, list(handles.values()), list(handles))
        return figure

    return render(
        "detection_scores",
        "Scores of the detectors",
        "Deployments by their score, on a logarithmic scale that ends at one in ten thousand; what lies "
        "beyond the last bin is counted in it. Scores right of the dotted line are flagged. Worst: the "
        f"attack with the lowest AUROC, where it succeeds. {_what(records)}",
        "Histograms of scores. "
        + "; ".join(
            f"{panel_title(r, results, records)}: threshold {r.threshold:.3g}, "
            f"{percent(r.clean_false_alarms)} % of clean deployments above it"
            for r in records
        ),
        draw,
    )


def rejection_figure(detection: Detection, results: Results) -> FigureFiles | None:
    """Return accuracy with rejection against eps, one pair of lines per detector, or None."""
    series: dict[tuple[str, str], list[Detected]] = {}
    for r in sorted(detection.records, key=lambda r: r.radius):
        series.setdefault((r.system, r.score), []).append(r)
    if not series:
        return None
    several = len({score for _, score in series}) > 1
    crowded = len(series) > MOST_LINES
    drawn = nearest(detection.records, results.headline_radius) if crowded else list(detection.records)

    def draw(scheme: Scheme) -> Figure:
        if crowded:
            return rows(drawn, [panel_title(r, results, drawn) for r in drawn])
        figure = new_figure(3.6)
        axes = figure.subplots()
        handles: dict[str, Any] = {}
        for place, ((system, score), records) in enumerate(series.items()):
            look = line(place, scheme)
            title = shorten(results.title(system), 44) + (f", {score.replace('_', ' ')}" if several else "")
            x = [0.0, *(255 * r.radius for r in records)]
            start = 100 * records[0].clean_with_rejection
            low = [start, *(100 * r.ci95[0] for r in records)]
            high = [start, *(100 * r.ci95[1] for r in records)]
            axes.fill_between(x, low, high, color=look.color, alpha=0.16, linewidth=0)
            for words, dashes, values in (
                ("attacked", "-", [r.accuracy for r in records]),
                ("not attacked", "--", [r.non_adaptive_accuracy for r in records]),
            ):
                (handles[f"{title}: detector {words}"],) = axes.plot(
                    x,
                    [start, *(100 * v for v in values)],
                    color=look.color,
                    marker=look.marker,
                    ls=dashes,
                    ms=5,
                )
        axes.set_xlabel(f"{norm_name(detection.records[0].norm)} eps, in 1/255")
        axes.set_ylabel("right or flagged, %")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 104)  # room for markers at 100
        legend_below(figure, list(handles.values()), list(handles))
        return figure

    looks = ("Full circles", "empty ones") if crowded else ("Solid", "dashed")
    rates = ", ".join(f"{percent(v)} %" for v in sorted({r.false_alarm_rate for r in detection.records}))
    return render(
        "detection_accuracy",
        f"Accuracy with rejection at eps {drawn[0].eps}"
        if crowded
        else "Accuracy with rejection against eps",
        f"Share of deployments that are right or flagged, at {rates} stated false alarms, each image under "
        f"its worst attack. {looks[0]}: also under attacks on the detector, with 95 % intervals over images; "
        f"{looks[1]}: under attacks that do not know it. {_what(drawn)}",
        "Accuracy with rejection. "
        + "; ".join(
            f"{panel_title(r, results, drawn)}: {percent(r.accuracy)} % attacked, "
            f"{percent(r.non_adaptive_accuracy)} % not attacked"
            for r in drawn
        ),
        draw,
    )


def attack_names(detection: Detection) -> list[str]:
    """Return the names of all attacks, in the order in which they were run."""
    return list(dict.fromkeys(a.attack for r in detection.records for a in r.attacks))


def panel_title(r: Detected, results: Results, beside: Sequence[Detected]) -> str:
    """Return which detector a panel shows: what tells it from those beside it, and eps.

    That is the system where there are several or nothing else is to be said, and the score where there are
    several or it is not the usual one.
    """
    scores = {other.score for other in beside} | {"predictive_information"}
    parts = [r.score.replace("_", " ")] if len(scores) > 1 else []
    if not parts or len({other.system for other in beside}) > 1:
        parts.insert(0, results.title(r.system))
    return ", ".join([*(shorten(part, 27 // len(parts)) for part in parts), r.eps])


def area(value: float | None) -> str:
    """Return an AUROC for people, or a dash where no attack succeeds."""
    return "–" if value is None else f"{value:.3f}"


def _drawn(r: Detected) -> dict[str, tuple[tuple[float, float], ...]]:
    return {a.attack: r.roc[a.attack] for a in r.attacks if a.attack in r.roc}


def _adaptive(r: Detected, name: str) -> bool:
    return any(a.attack == name and a.adaptive for a in r.attacks)


def _label(r: Detected, name: str) -> str:
    return f"{name} (on the detector)" if _adaptive(r, name) else name


def _sets(r: Detected) -> tuple[str, ...]:
    plain, aware = r.worst(adaptive=False), r.worst(adaptive=True)
    return (
        CLEAN,
        "clean, misclassified",
        "noise",
        plain.attack if plain else "",
        aware.attack if aware else "",
    )


def _what(records: Sequence[Detected]) -> str:
    images = ", ".join(f"{n:,}" for n in sorted({r.n for r in records}))
    steps = ", ".join(f"{n:,}" for n in sorted({a.steps for r in records for a in r.attacks if a.adaptive}))
    untrusted = "" if all(r.trusted for r in records) else " Some of it is untrusted: see the table."
    return f"n = {images} images, attacks on the detector of {steps or 'no'} steps.{untrusted}"
