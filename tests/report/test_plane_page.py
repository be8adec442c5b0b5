"""The plane on the page: its drawing is checked against the numbers that went in."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from squint._checks import InputError
from squint.report import write_report
from squint.report.curves import plane_figure
from squint.report.plane_page import HEIGHT, WIDTH, plane_csv, plane_fragment, plane_profile
from squint.report.results import parse_results

Results = dict[str, Any]
SVG = re.compile(r"<svg viewBox=\"0 0 460.*?</svg>", re.DOTALL)


def point(threat: str, eps: str, information: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "system": "squint_a", "threat": threat, "eps": eps, "strength": None, "information": information,
        "baseline": 0.1, "information_ci95": [information - 0.1, information + 0.1], "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.05, accuracy + 0.05], "n": 1200, "estimator": "soft_label",
        "layer": "predictions", "draws": 16,
    }  # fmt: skip
    return row | changes


@pytest.fixture
def plane() -> list[dict[str, Any]]:
    return [
        point("clean", "0", 1.6, 0.7),
        point("linf-pgd", "5/255", 1.1, 0.4),
        point("linf-pgd", "2/255", 1.3, 0.6),
        point("corruption:fog", "strength 1", 1.2, 0.5, strength=1),
        point("corruption:fog", "strength 5", 0.6, 0.2, strength=5),
        point("clean", "0", 0.3, 0.7, estimator="renyi", layer="features"),
        point("linf-pgd", "5/255", 0.2, 0.4, estimator="renyi", layer="features"),
        point("clean", "0", 1.5, 0.6, system="squint_b"),
    ]


def drawings(fragment: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in SVG.findall(fragment)]


def test_one_drawing_per_system_and_estimator(results: Results, plane: list[dict[str, Any]]) -> None:
    fragment = plane_fragment(parse_results(results | {"plane": plane}))
    assert fragment is not None
    names = re.findall(r"<h3>(.*?)</h3>|<h4>(.*?)</h4>", fragment)
    assert [a or b for a, b in names] == [
        "Information of predictions",
        "squint: stochastic quantization, agreement, three members",
        "Rényi information of features",
        "squint: stochastic quantization, agreement, three members",
    ]
    assert len(drawings(fragment)) == 2


def test_points_lie_where_their_numbers_say_and_tell_them(
    results: Results, plane: list[dict[str, Any]]
) -> None:
    fragment = plane_fragment(parse_results(results | {"plane": plane}))
    assert fragment is not None
    svg = drawings(fragment)[0]
    trails = [g for g in svg.iter("g") if "trail" in (g.get("class") or "")]
    assert [g.get("class") for g in trails] == ["trail trail-0", "trail trail-1"]
    told = [circle for circle in trails[0].iter("circle") if circle.find("title") is not None]
    titles = [circle.findtext("title") or "" for circle in told]
    assert [title.partition(":")[0] for title in titles] == [
        "clean",
        "linf-pgd, eps 2/255",
        "linf-pgd, eps 5/255",
    ]
    assert "1.000 nats (1.100 less 0.100 of shuffled pairs), 40.0 % [35.0, 45.0], n = 1,200" in titles[2]
    x, y = ([float(circle.get(name, "nan")) for circle in told] for name in ("cx", "cy"))
    # Both scales are straight: excess information 1.5, 1.2, 1.0, accuracy 0.7, 0.6, 0.4 (pixels to a tenth).
    assert (x[0] - x[1]) / (x[1] - x[2]) == pytest.approx(0.3 / 0.2, abs=0.01)
    assert (y[1] - y[0]) / (y[2] - y[1]) == pytest.approx(0.1 / 0.2, abs=0.01)
    assert all(0 < value < WIDTH for value in x)
    assert all(0 < value < HEIGHT for value in y)
    sizes = [float(circle.get("r", "nan")) for circle in told]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    rings = [circle for circle in trails[0].iter("circle") if circle.get("fill") == "none"]
    assert [(ring.get("cx"), ring.get("cy")) for ring in rings] == [(told[0].get("cx"), told[0].get("cy"))]
    fog = [circle.findtext("title") or "" for circle in trails[1].iter("circle")]
    assert any(title.startswith("corruption:fog, strength 5: 0.500 nats") for title in fog)


def test_ticks_say_their_place(results: Results, plane: list[dict[str, Any]]) -> None:
    for row in plane:
        row["information"] = 0.3 * row["information"] + 0.1  # ticks at steps of 0.15 want two decimals
        row["information_ci95"] = None
    fragment = plane_fragment(parse_results(results | {"plane": plane}))
    assert fragment is not None
    across = [
        t for t in drawings(fragment)[0].iter("text") if t.get("text-anchor") == "middle" and t.get("y")
    ]
    ticks = [
        (float(t.get("x", "nan")), float(t.text or "nan")) for t in across if t.text != "information, nats"
    ]
    (x0, v0), *_, (x1, v1) = ticks
    for x, value in ticks:
        assert value == pytest.approx(v0 + (x - x0) / (x1 - x0) * (v1 - v0), abs=2e-3 * (v1 - v0))


def test_every_threat_has_a_switch_of_its_own(results: Results, plane: list[dict[str, Any]]) -> None:
    fragment = plane_fragment(parse_results(results | {"plane": plane}))
    assert fragment is not None
    boxes = re.findall(r'<input type="checkbox" id="([^"]+)" checked />', fragment)
    assert boxes == ["plane-threat-0", "plane-threat-1"]
    for place, box in enumerate(boxes):
        assert f".plane:has(#{box}:not(:checked)) .trail-{place} {{ display: none; }}" in fragment
    assert "<script" not in fragment


def test_no_plane_nothing(results: Results) -> None:
    parsed = parse_results(results | {"plane": []})
    assert plane_fragment(parsed) is None
    assert plane_figure(parsed) is None


def test_a_single_flat_point_is_drawn(results: Results) -> None:
    bare = {"system": "x", "threat": "clean", "eps": "0", "information": 0.0, "baseline": 0.0,
            "accuracy": 1.0, "n": 3}  # fmt: skip
    fragment = plane_fragment(parse_results(results | {"plane": [bare]}))
    assert fragment is not None
    (svg,) = drawings(fragment)
    assert "clean: 0.000 nats" in ElementTree.tostring(svg, encoding="unicode")


def test_static_figure_has_a_panel_per_system_and_the_first_estimator(
    results: Results, plane: list[dict[str, Any]]
) -> None:
    figure = plane_figure(parse_results(results | {"plane": plane}))
    assert figure is not None
    assert "corruption:fog, strength 5: 0.500 nats, 20.0 %" in figure.alt
    assert "0.200 nats" not in figure.alt  # the Rényi clean point
    assert "eps (0, 2/255, 5/255) and with a corruption's strength" in figure.caption


def test_csv_holds_every_row_and_leaves_gaps_empty(results: Results, plane: list[dict[str, Any]]) -> None:
    plane[1]["information_ci95"] = None
    rows = list(csv.DictReader(io.StringIO(plane_csv(parse_results(results | {"plane": plane})))))
    assert len(rows) == len(plane)
    assert rows[1]["information_ci95_low"] == rows[1]["strength"] == ""
    assert float(rows[1]["accuracy_ci95_high"]) == 0.4 + 0.05
    assert (rows[4]["strength"], rows[4]["eps"], rows[5]["estimator"]) == ("5", "strength 5", "renyi")


def test_correlation_is_over_all_rows_and_clean_is_clean_wherever_filed(results: Results) -> None:
    profile = plane_profile(parse_results(results))
    assert {row.threat for row in profile.rows if row.eps == "0/255"} == {"clean"}
    assert {entry["system"] for entry in profile.correlation} == {"squint_a", "squint_b", "all"}


def test_strengths_are_checked(results: Results, plane: list[dict[str, Any]]) -> None:
    plane[3]["strength"] = "one"
    with pytest.raises(InputError, match=r"plane\[3\]: strength is 'one'"):
        parse_results(results | {"plane": plane})


def test_page_and_folder_have_it(
    results: Results, plane: list[dict[str, Any]], build: Callable[..., Path], tmp_path: Path
) -> None:
    text = write_report(build(tmp_path, results | {"plane": plane}, only_results=True)).read_text()
    assert 'id="plane"' in text
    assert (tmp_path / "plane.csv").read_text().startswith("system,threat,eps,strength,information")
