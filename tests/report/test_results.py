"""`results.json`: what is accepted, what is refused, and what may be called the ladder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from squint._checks import InputError
from squint.report.results import Flag, parse_results

Results = dict[str, Any]
MakeRecord = Callable[..., dict[str, Any]]


def test_radii_are_read_from_fractions(results: Results) -> None:
    parsed = parse_results(results)
    assert [r.radius for r in parsed.records[:3]] == [2 / 255, 5 / 255, 8 / 255]
    assert parsed.headline_radius == 5 / 255


@pytest.mark.parametrize(
    ("place", "key", "value", "said"),
    [
        ("records", "robust_accuracy", 38.4, r"records\[0\]: robust_accuracy is 38\.4"),
        ("records", "robust_accuracy", float("nan"), "robust_accuracy is nan"),
        ("records", "ci95", [0.4, 0.3], "the lower end first"),
        ("records", "ci95", [0.4], "allowed: \\[lower, upper\\]"),
        ("records", "eps", "five", "eps is 'five'"),
        ("records", "eps", 0.0196, "eps is 0.0196; allowed: text"),
        ("records", "n", 10.5, "n is 10.5"),
        ("records", "trusted", "yes", "trusted is 'yes'"),
        ("records", "red_flags", "bad", "red_flags is 'bad'"),
        ("systems", "tier", "D", "tier is 'D'; allowed: A, B, C"),
        ("plane", "accuracy", -0.1, r"plane\[0\]: accuracy is -0\.1"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(
    results: Results, place: str, key: str, value: object, said: str
) -> None:
    results[place][0][key] = value
    with pytest.raises(InputError, match=said) as caught:
        parse_results(results, "run/results.json")
    assert str(caught.value).startswith("run/results.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["system", "robust_accuracy", "ci95", "eps", "preset", "n"])
def test_a_missing_key_is_named(results: Results, key: str) -> None:
    del results["records"][0][key]
    with pytest.raises(InputError, match=rf"records\[0\] has no '{key}'"):
        parse_results(results)


def test_another_format_version_is_refused(results: Results) -> None:
    with pytest.raises(InputError, match="format_version is 2; allowed: 1"):
        parse_results(results | {"format_version": 2})
    with pytest.raises(InputError, match="allowed: a JSON object"):
        parse_results([results])


def test_a_red_flag_overrules_a_declared_trust(results: Results, record: MakeRecord) -> None:
    flag = {"kind": "zero_gradient", "message": "all-zero gradients", "measured": 0.0312345}
    results["records"] = [
        record("lsq", 5, trusted=True, red_flags=[flag]),
        record("lsq", 5, trusted=False, red_flags=[]),
        record("lsq", 5, trusted=True, red_flags=[]),
    ]
    flagged, untested, clean = parse_results(results).records
    assert not flagged.trusted
    assert flagged.flags == (Flag("zero_gradient", "all-zero gradients", "0.03123"),)
    assert flagged.reasons == ("all-zero gradients",)
    assert not untested.trusted
    assert "active test" in untested.reasons[0]
    assert clean.trusted
    assert clean.reasons == ()


@pytest.mark.parametrize(
    ("preset", "name"), [("seed", "seed protocol"), ("quick", "quick preset"), ("mine", "preset mine")]
)
def test_only_a_full_budget_is_called_the_ladder(
    results: Results, record: MakeRecord, preset: str, name: str
) -> None:
    results["records"] = [record("lsq", 5, preset=preset, attack="ladder")]
    (found,) = parse_results(results).records
    assert found.preset_name == name
    assert "ladder" not in found.attack_name + found.preset_name
    results["records"] = [record("lsq", 5, preset="standard", attack="ladder")]
    (full,) = parse_results(results).records
    assert "ladder" in full.preset_name
    assert full.attack_name == "ladder"


def test_null_budgets_and_scores_are_dashes(results: Results, record: MakeRecord) -> None:
    results["records"] = [record("lsq", 5, steps=None, eot=None, single_draw_accuracy=None, persistent=None)]
    (found,) = parse_results(results).records
    assert found.budget == "– × – × 1"
    assert found.single_draw_accuracy is None
    assert found.persistent == {}
