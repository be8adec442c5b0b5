"""What the page says of a ladder beside its figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from squint._checks import InputError
from squint.report import write_report
from squint.report.ladder_page import ladder_fragment
from squint.report.results import parse_results

DETAILS: dict[str, Any] = {
    "uint8_accuracy": 0.234,
    "known_randomness_accuracy": 0.123,
    "margins": {"below_0.1": 0.345},
    "sweep": [
        {"draws": 1, "accuracy": 0.11, "seconds_per_image": 0.0012},
        {"draws": 16, "accuracy": 0.22, "seconds_per_image": None},
        {"draws": 64, "accuracy": 0.33},
    ],
    "broken_on_clean": 7,
    "broken_by": {"targeted": 31, "apgd": 2},
    "unbroken": 960,
    "gradients_per_broken": 12345.6,
}


def page_of(results: dict[str, Any]) -> str:
    fragment = ladder_fragment(parse_results(results))
    return "" if fragment is None else " ".join(str(fragment).split())


@pytest.fixture
def climbed(results: dict[str, Any], record: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    entry = record("squint_a", 5, attack="ladder", preset="standard", draws=4, robust_accuracy=0.298)
    results["records"].append(entry | {"details": DETAILS})
    return results


def test_all_figures_of_a_ladder_are_told(climbed: dict[str, Any]) -> None:
    text = page_of(climbed)
    for cell in ("23.4", "12.3", "34.5", "12,346"):
        assert f"<td>{cell}</td>" in text
    for words in ("no attack 7", "targeted 31", "apgd 2", "none 960"):
        assert words in text
    cells = [cell.split("</td>")[0] for cell in text.split("S = 64")[1].split('<td class="tight">')[2:]]
    assert cells == ["11.0 [1.2 ms]", "22.0", "33.0"]


def test_the_deployed_number_of_draws_stands_among_the_others(climbed: dict[str, Any]) -> None:
    other = climbed["records"][-1] | {"system": "squint_b", "draws": 16, "robust_accuracy": 0.777}
    other["details"] = DETAILS | {"sweep": [{"draws": 4, "accuracy": 0.5}]}
    climbed["records"].append(other)
    row = page_of(climbed).split("squint with curvature penalty")[2]
    cells = [cell.split("</td>")[0] for cell in row.split('<td class="tight">')[2:]]
    assert cells == ["–", "50.0", "77.7", "–"]  # S = 1, 4, 16, 64


def test_what_a_ladder_did_not_measure_is_a_dash(climbed: dict[str, Any]) -> None:
    bare = {"broken_by": {"targeted": 3}, "known_randomness_accuracy": None, "gradients_per_broken": None}
    climbed["records"][-1]["details"] = bare
    text = page_of(climbed)
    assert text.count("<td>–</td>") == 4
    assert "S = " not in text


def test_the_page_has_the_block_where_there_is_a_ladder(
    climbed: dict[str, Any], results: dict[str, Any], build: Callable[..., Path], tmp_path: Path
) -> None:
    page = write_report(build(tmp_path / "with", climbed, only_results=True)).read_text(encoding="utf-8")
    assert "What the ladder found, beside its figure" in page
    results["records"] = [r for r in results["records"] if r["attack"] != "ladder"]
    assert page_of(results) == ""


def test_bad_figures_are_named_with_their_place(climbed: dict[str, Any]) -> None:
    last = len(climbed["records"]) - 1
    for change, words in (
        ({"uint8_accuracy": 2}, "uint8_accuracy is 2"),
        ({"broken_by": {"apgd": -1}}, "broken_by: apgd is -1"),
        ({"sweep": [{"accuracy": 0.1}]}, r"sweep\[0\] has no 'draws'"),
        ({"sweep": 3}, "sweep is int"),
    ):
        climbed["records"][-1]["details"] = DETAILS | change
        with pytest.raises(InputError, match=rf"records\[{last}\].*{words}"):
            parse_results(climbed)
