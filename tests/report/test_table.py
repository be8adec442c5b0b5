"""The comparison table, the headline sentence and their print-out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from squint.report import comparison_table, print_table
from squint.report.results import parse_results
from squint.report.table import headline_of, interval, percent, rows_of

Results = dict[str, Any]
MakeRecord = Callable[..., dict[str, Any]]


def printed(results: Results, width: int = 100) -> str:
    out = io.StringIO()
    print_table(results, Console(file=out, width=width))
    return out.getvalue()


def test_rows_are_sorted_by_robust_accuracy_at_the_headline_eps(results: Results) -> None:
    rows = comparison_table(results)
    robust = [row.robust for row in rows if row.robust is not None]
    assert len(robust) == len(rows) == 5
    assert robust == sorted(robust, reverse=True)
    assert rows[0].system == "squint_b"
    assert rows[0].robust == pytest.approx(0.644 - 5 * 0.052)
    assert rows[0].tier == "B"
    assert rows[0].persistent == pytest.approx(0.8 * (0.644 - 5 * 0.052))
    assert (rows[0].budget, rows[0].preset, rows[0].n) == ("20 × 1 × 1", "seed protocol", 1000)


def test_other_attacks_and_radii_do_not_enter(results: Results, record: MakeRecord) -> None:
    results["records"] = [
        record("lsq", 5, robust_accuracy=0.2),
        record("lsq", 5, attack="square", robust_accuracy=0.9),
        record("lsq", 2, robust_accuracy=0.8),
    ]
    rows = comparison_table(results)
    assert rows[0].robust == 0.2
    assert {row.robust for row in rows[1:]} == {None}
    assert {row.verdict for row in rows[1:]} == {"–"}


def test_eps_is_compared_as_a_number(results: Results, record: MakeRecord) -> None:
    results["records"] = [record("lsq", 5, eps="10/510", robust_accuracy=0.2)]
    assert comparison_table(results)[0].robust == 0.2


def test_the_strongest_preset_then_the_worst_case_counts(results: Results, record: MakeRecord) -> None:
    results["records"] = [
        record("lsq", 5, preset="standard", robust_accuracy=0.30),
        record("lsq", 5, preset="standard", robust_accuracy=0.25),
        record("lsq", 5, preset="seed", robust_accuracy=0.10),
        record("lsq", 5, preset="made up", robust_accuracy=0.05),
    ]
    row = comparison_table(results)[0]
    assert (row.robust, row.preset) == (0.25, "ladder, standard budget")


def test_headline_says_what_was_measured(results: Results) -> None:
    parsed = parse_results(results)
    headline = headline_of(parsed, rows_of(parsed))
    assert headline.system == "squint_a"
    sentence = headline.sentence.replace("\u00a0", " ")
    for part in ("three members (tier A)", "29.8 % of 1,000 images", "PGD at L∞ eps 5/255", "seed protocol",
                 "95 % interval 26.8 to 32.8 %", "67.3 % without attack"):  # fmt: skip
        assert part in sentence
    assert headline.trusted
    assert headline.verdict == "trusted"


def test_without_a_named_system_a_trusted_row_leads(results: Results, record: MakeRecord) -> None:
    del results["headline_system"]
    flagged = record("lsq", 5, robust_accuracy=0.9, ci95=[0.88, 0.92], red_flags=["masked"], trusted=False)
    results["records"] = [record("squint_b", 5), flagged]
    parsed = parse_results(results)
    assert headline_of(parsed, rows_of(parsed)).system == "squint_b"
    results["records"] = [flagged]
    parsed = parse_results(results)
    headline = headline_of(parsed, rows_of(parsed))
    assert (headline.system, headline.verdict, headline.reasons) == ("lsq", "UNTRUSTED", ("masked",))


def test_nothing_evaluated_is_said(results: Results) -> None:
    results["records"] = []
    parsed = parse_results(results)
    headline = headline_of(parsed, rows_of(parsed))
    assert "No system has been evaluated" in headline.sentence
    assert not headline.trusted
    assert "No system has been evaluated" in printed(results)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0.0"), (0.3846, "38.5"), (1.0, "100.0"), (0.00049, "0.0")]
)
def test_percentages_have_one_decimal(value: float | None, text: str) -> None:
    assert percent(value) == text


def test_interval_ends_stay_in_range() -> None:
    assert interval((-1e-9, 1 + 1e-9)) == "[0.0, 100.0]"


@pytest.mark.parametrize("width", [80, 100, 160])
def test_print_fits_the_terminal(results: Results, width: int) -> None:
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert "UNTRUSTED" in text
    assert "seed protocol" in text


@pytest.mark.parametrize("width", [80, 100])
def test_print_cuts_no_figure(results: Results, width: int) -> None:
    text = " ".join(printed(results, width).split())
    for part in (
        "38.4 [35.4, 41.4]",
        "36.5",
        "30.7",
        "20×1×1",
        "n = 1,000",
        "Square finds adversarial points",
    ):
        assert part in text
    assert "…" not in text


def test_print_takes_markup_in_names_literally(results: Results) -> None:
    results["systems"][0]["title"] = "[red]net[/red]"
    assert "[red]net[/red]" in printed(results, 140)


def test_print_names_the_preset_of_each_row_where_they_differ(results: Results, record: MakeRecord) -> None:
    results["records"] = [record("lsq", 5), record("squint_a", 5, preset="quick", eot=8)]
    text = printed(results)
    assert "Under PGD at eps 5/255" in text
    assert "quick preset" in text.split("restarts", 1)[1]
    assert "20×8×1" in text


def test_validation_images_are_called_so(results: Results) -> None:
    for split, words in (
        ("test", "1,000 images correctly"),
        ("validation", "1,000 validation images correctly"),
    ):
        parsed = parse_results(results | {"split": split})
        assert words in headline_of(parsed, rows_of(parsed)).sentence
        assert ("validation images" in printed(results | {"split": split})) == (split == "validation")
