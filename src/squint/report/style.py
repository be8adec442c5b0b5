"""How figures look: two schemes, one palette, and bytes that depend on nothing but what is drawn.

matplotlib is used through its objects; its settings are changed only inside `drawing`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDTH = 7.2
"""Width of every figure in inches."""

FOREGROUND = "foreground"
"""Stands for the scheme's text colour in the palette: black of Okabe and Ito, white on a dark page."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", FOREGROUND)
"""Colours that colour-blind readers tell apart (Okabe and Ito 2008), without the yellow: faint on white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("-", "--", "-.", ":")
_LEGEND_ROW = 0.2  # inches
_LEGEND_CHARACTERS = 96  # that fit beside each other; 9 of them go to each entry's line and gap


@dataclass(frozen=True)
class Scheme:
    """The colours of one colour scheme; text and wrong votes have a contrast above 4.5 to the page."""

    text: str
    page: str
    grid: str
    wrong: str


LIGHT = Scheme(text="#1b1f24", page="#ffffff", grid="#d5d9df", wrong="#a33b00")
DARK = Scheme(text="#e6e9ee", page="#171b21", grid="#3a414b", wrong="#ffa56b")


@dataclass(frozen=True)
class FigureFiles:
    """One figure, rendered: SVG for both schemes, PNG for the light one, and what it says in words."""

    name: str
    title: str
    caption: str
    alt: str
    svg: bytes
    svg_dark: bytes
    png: bytes


@dataclass(frozen=True)
class Line:
    """How one series looks: never by colour alone."""

    color: str
    marker: str
    dashes: str


def line(index: int, scheme: Scheme) -> Line:
    """Return the look of the series with this index; the first 28 differ in colour or dashes."""
    color = PALETTE[index % len(PALETTE)]
    if color == FOREGROUND:
        color = scheme.text
    return Line(color, MARKERS[index % len(MARKERS)], DASHES[index // len(PALETTE) % len(DASHES)])


@contextmanager
def drawing(scheme: Scheme) -> Iterator[None]:
    """Use this project's settings for one scheme, whatever the reader's own are, and restore them."""
    settings: Any = {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "svg.hashsalt": "squint",  # the same drawing gives the same bytes
        "text.parse_math": False,  # a system may be called cost$
        "text.color": scheme.text,
        "grid.color": scheme.grid,
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), scheme.text),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), scheme.page),
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def render(name: str, title: str, caption: str, alt: str, draw: Callable[[Scheme], Figure]) -> FigureFiles:
    """Return a figure as SVG in both schemes and as PNG at 150 dots per inch.

    Args:
        name: file name without its ending.
        title: heading.
        caption: what is shown, with n and budget.
        alt: what a reader who cannot see it needs to know.
        draw: makes the figure; called once per scheme.
    """
    with drawing(LIGHT):
        figure = draw(LIGHT)
        svg, png = _bytes(figure, "svg"), _bytes(figure, "png")
    with drawing(DARK):
        dark = _bytes(draw(DARK), "svg")
    return FigureFiles(name, title, caption, alt, svg, dark, png)


def new_figure(height: float) -> Figure:
    """Return an empty figure of the common width with a canvas of its own, unknown to pyplot."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: Figure, count: int, columns: int = 2) -> list[Axes]:
    """Return `count` axes in rows of up to `columns`, the rest of the last row left empty."""
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return list(grid[:count])


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Put a legend below the data, in as many columns as its longest name leaves room for.

    The figure grows by the legend's height. A leading underscore would hide a name's entry, so it gets a
    space.
    """
    columns = min(len(labels), max(1, _LEGEND_CHARACTERS // (max(map(len, labels)) + 9)))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + _LEGEND_ROW * -(-len(labels) // columns))
    figure.legend(
        handles,
        [f" {label}" if label.startswith("_") else label for label in labels],
        loc="outside lower center",
        ncols=columns,
        handlelength=2.6,
    )


def shorten(text: str, length: int) -> str:
    """Return text of at most `length` characters, with an ellipsis where some were left out."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _bytes(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()
