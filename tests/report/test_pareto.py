"""Accuracy against cost: who is on the front, what is drawn, and the table of costs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from squint._checks import InputError
from squint.report import print_table, write_report
from squint.report.costs import cost_rows, duration, short_count
from squint.report.pareto import (
    MOST_NAMES,
    Candidate,
    candidates,
    cost_ticks,
    front_of,
    front_path,
    limits,
    pareto_figure,
)
from squint.report.pareto_page import pareto_fragment
from squint.report.results import Results, parse_results
from squint.report.table import rows_of

MakeRecord = Callable[..., dict[str, Any]]
Build = Callable[..., Path]
COSTS = {
    "full_precision": 4_000_000,
    "lsq": 100_000,
    "squint_a": 900_000,
    "squint_b": 900_000,
    "pgd_training": 4_000_000,
}


def with_costs(results: dict[str, Any]) -> dict[str, Any]:
    for system in results["systems"]:
        cost = COSTS[system["name"]]
        system |= {"bit_operations": cost, "stored_bits": 2 * cost, "training_passes": 6000, "draws": 4}
        system["training_compute"] = 2.5 if system["name"] == "pgd_training" else 1.0
    return results


@pytest.fixture
def costly(results: dict[str, Any]) -> dict[str, Any]:
    """A run whose systems say what they cost."""
    return with_costs(results)


def found_in(results: dict[str, Any]) -> tuple[Results, list[Candidate]]:
    parsed = parse_results(results)
    return parsed, candidates(parsed, rows_of(parsed))


def test_the_front_holds_what_no_other_system_beats(costly: dict[str, Any]) -> None:
    _, found = found_in(costly)
    by_name = {each.system: each for each in found}
    # At 5/255: squint_b 38.4, pgd_training 38.2, squint_a 29.8, lsq 0, full_precision 0.
    assert [each.system for each in front_of(found)] == ["lsq", "squint_b"]
    assert not by_name["pgd_training"].on_front
    assert not by_name["squint_a"].on_front
    assert not by_name["full_precision"].on_front


def test_the_line_along_the_front_buys_nothing_before_it_is_paid(costly: dict[str, Any]) -> None:
    _, found = found_in(costly)
    cheap, dear = front_of(found)
    assert front_path(found) == [(cheap.x, cheap.robust), (dear.x, cheap.robust), (dear.x, dear.robust)]


def test_ticks_are_round_and_few() -> None:
    assert cost_ticks(7e6, 6e9) == [1e7, 1e8, 1e9]
    assert cost_ticks(1.5e7, 3e8) == [2e7, 5e7, 1e8, 2e8]


def test_equals_in_both_are_both_on_the_front(costly: dict[str, Any], record: MakeRecord) -> None:
    costly["records"] = [
        record("squint_a", 5, robust_accuracy=0.3, ci95=[0.2, 0.4]),
        record("squint_b", 5, robust_accuracy=0.3, ci95=[0.2, 0.4]),
        record("pgd_training", 5, robust_accuracy=0.3, ci95=[0.2, 0.4]),
    ]
    _, found = found_in(costly)
    assert {each.system for each in front_of(found)} == {"squint_a", "squint_b"}


def test_systems_of_equal_cost_stand_side_by_side_around_it(costly: dict[str, Any]) -> None:
    _, found = found_in(costly)
    by_name = {each.system: each for each in found}
    a, b = by_name["squint_a"], by_name["squint_b"]
    assert a.x != b.x
    assert math.sqrt(a.x * b.x) == pytest.approx(900_000)
    assert by_name["lsq"].x == pytest.approx(100_000)
    low, high = limits(found)
    assert low < min(each.x for each in found) < max(each.x for each in found) < high


def test_neighbours_in_cost_keep_their_order(costly: dict[str, Any]) -> None:
    """Side by side, systems of one cost come nowhere near those of the next."""
    prices = [100_000, 900_000, 900_000, 1_000_000, 1_500_000]
    for system, cost in zip(costly["systems"], prices, strict=True):
        system["bit_operations"] = cost
    _, found = found_in(costly)
    drawn = sorted(found, key=lambda each: each.x)
    assert [each.bit_operations for each in drawn] == prices
    assert len({each.x for each in found}) == 5


def test_costs_that_are_alike_make_no_drawing(costly: dict[str, Any]) -> None:
    for place, system in enumerate(costly["systems"]):
        system["bit_operations"] = 1_000_000 + 400_000 * place
    assert found_in(costly)[1] == []


def test_without_costs_or_figures_there_is_no_drawing(
    results: dict[str, Any], costly: dict[str, Any], record: MakeRecord
) -> None:
    costly["records"] = [record("lsq", 5)]
    assert found_in(costly)[1] == []
    for system in results["systems"]:
        system["bit_operations"] = None
    parsed = parse_results(results)
    assert pareto_figure(parsed, rows_of(parsed)) is None
    assert pareto_fragment(parsed, rows_of(parsed)) is None


def test_in_a_crowd_only_the_front_and_the_headline_are_named(
    costly: dict[str, Any], record: MakeRecord
) -> None:
    for place in range(MOST_NAMES):
        name = f"extra{place}"
        costly["systems"].append({**costly["systems"][0], "name": name, "title": name})
        costly["records"].append(record("full_precision", 5) | {"system": name})
    parsed, found = found_in(costly)
    named = {each.system for each in found if each.named}
    assert named == {"lsq", "squint_b", "squint_a"}
    figure = pareto_figure(parsed, rows_of(parsed))
    assert figure is not None
    assert "Only the front and the headline are named" in figure.caption


def test_the_figure_says_what_it_shows(costly: dict[str, Any]) -> None:
    parsed = parse_results(costly)
    figure = pareto_figure(parsed, rows_of(parsed))
    assert figure is not None
    assert "over 1,000 images" in figure.caption
    assert "1 of 5 figures are untrusted" in figure.caption
    assert (
        "squint with curvature penalty: 38.4 % [35.4, 41.4] at 9e+05 bit operations, on the front"
        in figure.alt
    )
    for svg in (figure.svg, figure.svg_dark):
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert pareto_figure(parsed, rows_of(parsed)) == figure


def test_the_page_has_the_drawing_and_the_costs(costly: dict[str, Any], build: Build, tmp_path: Path) -> None:
    run = write_report(build(tmp_path, costly | {"plane": []}, only_results=True)).parent
    assert (run / "figures" / "pareto.png").is_file()
    assert (run / "figures" / "pareto.svg").is_file()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="pareto-tier-C"' in page
    assert page.count('<g class="mark ') == 5
    for part in ("900 k bit operations", "4 M bit operations", "training compute × 2.5", "1.8 M bits stored"):
        assert part in page
    assert "<script" not in page


def test_names_with_markup_stay_text_in_the_drawing(costly: dict[str, Any]) -> None:
    for system in costly["systems"]:
        system["title"] = "</svg><script>alert(1)</script> cost$"
    parsed = parse_results(costly)
    fragment = pareto_fragment(parsed, rows_of(parsed))
    assert fragment is not None
    assert "<script" not in fragment
    assert pareto_figure(parsed, rows_of(parsed)) is not None


def test_rows_of_costs_keep_the_order_of_the_comparison(costly: dict[str, Any], record: MakeRecord) -> None:
    costly["records"] += [
        record("lsq", 5, attack="ladder", preset="quick", robust_accuracy=0.01, ci95=[0.0, 0.1])
    ]
    costly["headline_attack"] = "ladder"
    parsed = parse_results(costly)
    rows = cost_rows(parsed, rows_of(parsed))
    assert rows[0].system.name == "lsq"
    assert rows[0].headline == 0.01
    assert rows[0].seed_protocol == pytest.approx(max(0.0, 0.761 - 5 * 0.28))
    assert {row.headline for row in rows[1:]} == {None}


def test_the_terminal_prints_costs_where_they_are_known(costly: dict[str, Any]) -> None:
    def printed(run: dict[str, Any], width: int) -> str:
        out = io.StringIO()
        print_table(run, Console(file=out, width=width))
        return out.getvalue()

    for width in (80, 120):
        text = printed(costly, width)
        assert max(map(len, text.splitlines())) <= width
        assert "× 2.5" in text
        assert "900 k" in text
        assert "1.8 M" in text
    for system in costly["systems"]:
        del system["bit_operations"]
    assert "ops" not in printed(costly, 100)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (950, "950"), (1_234, "1.23 k"), (2_912_256, "2.91 M"), (5e9, "5 G"), (3e12, "3 T")],
)
def test_counts_are_short(value: float | None, text: str) -> None:
    assert short_count(value) == text


def test_times_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (None, 7.2, 119, 600, 8000)] == ["–", "7 s", "119 s", "10 min", "2.2 h"]


def test_compute_is_equal_within_a_twentieth(costly: dict[str, Any]) -> None:
    values = (1.0, 0.96, 1.04, 0.9, 3.5, None)
    words = []
    for value in values:
        costly["systems"][0]["training_compute"] = value
        words.append(parse_results(costly).systems[0].compute)
    assert words == ["equal", "equal", "equal", "× 0.9", "× 3.5", "–"]


def test_costs_that_are_not_allowed_are_named(costly: dict[str, Any]) -> None:
    costly["systems"][1]["bit_operations"] = -3
    with pytest.raises(InputError, match=r"systems\[1\]: bit_operations is -3"):
        parse_results(costly)
