"""What a plane's points say together: made-up rows whose correlation and prediction are known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from squint._checks import InputError
from squint.evaluation.information_plane import DEFAULT_THREATS
from squint.evaluation.plane_profile import PlaneRow, profile_of


def made_up(points: dict[str, list[tuple[float, float]]], **changes: Any) -> Iterator[PlaneRow]:
    for threat, places in points.items():
        for information, accuracy in places:
            values: dict[str, Any] = {
                "system": "s", "threat": threat, "eps": "1/255", "strength": None,
                "information": information + 1, "baseline": 1.0, "information_ci95": (0.0, 2.0),
                "accuracy": accuracy,
                "accuracy_ci95": (0.0, 1.0), "n": 10, "estimator": "soft_label", "layer": "predictions",
                "draws": 1,
            }  # fmt: skip
            yield PlaneRow(**(values | changes))


def test_correlation_and_prediction_where_information_tells_all() -> None:
    line = {
        name: [(t, t / 2) for t in at]
        for name, at in (("clean", [1.0]), ("a", [0.1, 0.4]), ("b", [0.2, 0.3]))
    }
    result = profile_of(made_up(line))
    assert result.correlation == (
        {
            "estimator": "soft_label",
            "system": "s",
            "spearman": pytest.approx(1),
            "spearman_ci95": None,  # two threat models are too few to draw from
            "points": 5,
        },
    )
    errors = {entry["threat"]: entry for entry in result.leave_one_out}
    # Isotonic regression interpolates a line, and goes on flat below its lowest point: 0.1 is taken for 0.2.
    assert errors["b"]["error"] == pytest.approx(0, abs=1e-9)
    assert errors["a"]["error"] == pytest.approx((0.1 - 0.05) / 2, abs=1e-9)
    assert errors["b"]["constant_error"] == pytest.approx((0.5 + 0.05 + 0.2) / 3 - 0.125)
    assert errors["all"]["error"] == pytest.approx((errors["a"]["error"] + errors["b"]["error"]) / 2)


def test_falling_information_predicts_as_well() -> None:
    falling = {"clean": [(0.0, 1.0)], "a": [(0.5, 0.5), (1.0, 0.0)], "b": [(0.25, 0.75), (0.75, 0.25)]}
    result = profile_of(made_up(falling))
    assert result.correlation[0]["spearman"] == pytest.approx(-1)
    assert {e["threat"]: e["error"] for e in result.leave_one_out}["b"] == pytest.approx(0, abs=1e-9)


def test_corruptions_are_left_out_together_and_systems_are_pooled() -> None:
    points = {"clean": [(1.0, 0.9)], "corruption:fog": [(0.5, 0.5)], "corruption:jpeg": [(0.6, 0.6)]}
    points["a"] = [(0.4, 0.4)]
    rows = [*made_up(points), *made_up(points, system="t"), *made_up(points, estimator="renyi")]
    result = profile_of(rows)
    assert [(e["estimator"], e["system"]) for e in result.correlation] == [
        ("soft_label", "s"), ("soft_label", "t"), ("soft_label", "all"), ("renyi", "s"),
    ]  # fmt: skip
    left = [(e["threat"], e["points"]) for e in result.leave_one_out if e["estimator"] == "soft_label"]
    assert left == [("corruption", 4), ("a", 2), ("all", 6)]


def test_what_cannot_be_said_is_none() -> None:
    result = profile_of(made_up({"clean": [(1.0, 0.5)], "a": [(1.0, 0.5)]}))
    assert result.correlation[0]["spearman"] is None
    assert result.leave_one_out[0]["error"] is None
    assert "rank correlation –" in str(result)
    with pytest.raises(InputError, match="rows is empty"):
        profile_of([])


def test_rows_survive_json_and_csv() -> None:
    rows = list(made_up({"clean": [(1.0, 0.9)], "a": [(0.4, 0.4), (1 / 3, 0.2)]}))
    profile = profile_of([*rows, *made_up({"corruption:fog": [(0.5, 0.5)]}, eps="strength 3", strength=3)])
    plain = json.loads(json.dumps(profile.to_json()))
    assert profile_of(PlaneRow.from_json(row) for row in plain["rows"]) == profile
    table = list(csv.DictReader(io.StringIO(profile.to_csv())))
    assert [line["strength"] for line in table] == ["", "", "", "3"]
    assert float(table[2]["information"]) == profile.rows[2].information
    assert float(table[2]["accuracy_ci95_high"]) == 1.0
    with pytest.raises(InputError, match="has no threat, layer"):
        PlaneRow.from_json({k: v for k, v in plain["rows"][0].items() if k not in ("threat", "layer")})
    with pytest.raises(InputError, match="accuracy_ci95 3; allowed: two numbers"):
        PlaneRow.from_json(plain["rows"][0] | {"accuracy_ci95": 3})


def test_a_threat_is_left_out_alone_and_with_its_family() -> None:
    # Both gradient attacks lie on accuracy 0.2; the others say 1 everywhere.
    points = {"clean": [(1.0, 1.0)], "linf-pgd": [(0.1, 0.2)], "apgd": [(0.2, 0.2)], "square": [(0.1, 1.0)]}
    points["noise-l2"] = [(0.3, 1.0)]
    result = profile_of(made_up(points))
    left = {entry["threat"]: entry for entry in result.leave_one_out}
    assert {name: entry["family"] for name, entry in left.items()} == {
        "linf-pgd": "gradient", "apgd": "gradient", "square": "black box", "noise-l2": "noise", "all": "all",
    }  # fmt: skip
    # With L∞ PGD away, square (1.0) and APGD (0.2) pool to 0.6; with APGD away too, all that is known is 1.
    assert left["linf-pgd"]["error"] == pytest.approx(0.4)
    assert left["linf-pgd"]["family_error"] == pytest.approx(0.8)
    assert left["linf-pgd"]["family_constant_error"] == pytest.approx(0.8)
    assert left["noise-l2"]["family_error"] == left["noise-l2"]["error"]
    own = [left[name]["family_error"] for name in points if name != "clean"]
    assert left["all"]["family_error"] == pytest.approx(sum(own) / 4)
    assert "with all of its family left out 0.800 (0.800)" in str(result)


def test_correlation_has_an_interval_over_threats() -> None:
    rising = {name: [(t, t)] for name, t in (("clean", 1.0), ("a", 0.1), ("b", 0.2), ("c", 0.3))}
    low, high = profile_of(made_up(rising)).correlation[0]["spearman_ci95"]
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)
    mixed = rising | {"d": [(0.4, 0.0), (0.5, 0.05)]}
    found = profile_of(made_up(mixed))
    low, high = found.correlation[0]["spearman_ci95"]
    # Samples without the odd threat say 1, those with it much less: the interval holds both.
    assert low < found.correlation[0]["spearman"] < high
    assert high == pytest.approx(1)
    assert found == profile_of(made_up(mixed))
    assert "over threat models" in str(found)


def test_default_threats_hold_every_family_an_ensemble_aware_attack_and_eight_corruptions() -> None:
    assert {"apgd", "mora", "square", "transfer", "noise-l2"} <= set(DEFAULT_THREATS)
    assert sum(name.startswith("corruption:") for name in DEFAULT_THREATS) >= 8
