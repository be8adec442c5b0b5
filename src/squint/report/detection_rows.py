"""Many detectors at one radius: a row each, attacked and not attacked, never one of them alone."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from squint.report.detection import Detected
from squint.report.style import PALETTE, legend_below, new_figure

MOST_LINES = 4
"""Detectors up to which accuracy with rejection is drawn as lines over eps: more cannot be told apart."""


def nearest(records: Sequence[Detected], radius: float) -> list[Detected]:
    """Return the records at the one radius that is nearest to `radius`."""
    at = min((r.radius for r in records), key=lambda held: abs(held - radius))
    return [r for r in records if r.radius == at]


def rows(records: Sequence[Detected], titles: Sequence[str]) -> Figure:
    """Return a figure with one row per record: accuracy with rejection, with its interval, and not attacked.

    Args:
        records: of one radius.
        titles: what the rows are called.
    """
    figure = new_figure(0.9 + 0.27 * len(records))
    axes = figure.subplots()
    ordered = sorted(zip(records, titles, strict=True), key=lambda pair: pair[0].accuracy)
    places = range(len(ordered))
    held = [r for r, _ in ordered]
    axes.hlines(
        places, [100 * r.ci95[0] for r in held], [100 * r.ci95[1] for r in held], color=PALETTE[0], lw=1.2
    )
    attacked = axes.scatter([100 * r.accuracy for r in held], places, color=PALETTE[0], s=32, zorder=3)
    free = axes.scatter(
        [100 * r.non_adaptive_accuracy for r in held],
        places,
        facecolors="none",
        edgecolors=PALETTE[1],
        s=32,
        zorder=2.5,
    )
    axes.set_yticks(list(places), [title for _, title in ordered])
    axes.set_xlabel("right or flagged, %")
    axes.set_xlim(0, 101)
    legend_below(figure, [attacked, free], ["detector attacked, 95 % interval", "detector not attacked"])
    return figure
