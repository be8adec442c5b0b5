"""Looks: told apart without colour, legible in both schemes, and no settings left behind."""

from __future__ import annotations

import io

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image

from squint.report.style import DARK, LIGHT, WIDTH, Scheme, drawing, line, new_figure, render, shorten


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, from the definition of the web's contrast ratio."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_and_lines_stand_out(scheme: Scheme) -> None:
    assert contrast(scheme.text, scheme.page) > 7
    assert contrast(scheme.wrong, scheme.page) > 4.5
    for i in range(7):
        assert contrast(line(i, scheme).color, scheme.page) > 2


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_series_differ_by_more_than_colour(scheme: Scheme) -> None:
    looks = [line(i, scheme) for i in range(28)]
    assert len({(look.color, look.dashes) for look in looks}) == 28
    for first in range(0, 28, 8):
        assert len({look.marker for look in looks[first : first + 8]}) == len(looks[first : first + 8])


def draw(scheme: Scheme) -> Figure:
    figure = new_figure(2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=scheme.text)
    axes.set_title("costs $5 and _more_ \u0f40")  # neither mathematics nor in the font
    return figure


def test_rendering_repeats_itself_and_leaves_no_settings() -> None:
    before = dict(matplotlib.rcParams)
    first, second = (render("a", "title", "caption", "alt", draw) for _ in range(2))
    assert dict(matplotlib.rcParams) == before
    assert (first.svg, first.svg_dark, first.png) == (second.svg, second.svg_dark, second.png)
    assert first.svg != first.svg_dark
    assert Image.open(io.BytesIO(first.png)).size == (round(150 * WIDTH), 300)


def test_a_readers_own_settings_do_not_enter() -> None:
    plain = render("a", "title", "caption", "alt", draw).svg
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert render("a", "title", "caption", "alt", draw).svg == plain


def test_settings_return_after_an_error() -> None:
    before = dict(matplotlib.rcParams)
    with pytest.raises(RuntimeError), drawing(DARK):
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before


def test_shorten_keeps_what_fits() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab…"
