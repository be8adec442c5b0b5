"""What `python -m benchmarks.graveyard` recorded: defences that looked robust fell, and were not trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.graveyard import GRAVES

from squint._files import read_json

RECORDS = read_json(Path(__file__).parents[3] / "results" / "graveyard" / "records.json")
NOT_OF_THE_MODEL = {"too_few_images", "no_active_tests", "no_noise_control"}
"""What any model would be told of so few images."""


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["system"])
def test_a_grave_is_told_what_it_hid(record: dict[str, object]) -> None:
    assert record["system"] in GRAVES
    assert record["preset"] == "standard"
    # The random pair keeps a little: whatever fools one of its networks can be answered by the other.
    assert record["robust_accuracy"] <= 0.2  # type: ignore[operator]
    assert record["robust_accuracy"] < record["paper_accuracy"] / 2  # type: ignore[operator]
    assert record["paper_accuracy"] > 0.3  # type: ignore[operator]
    assert record["trusted"] is False
    kinds = {flag["kind"] for flag in record["red_flags"]}  # type: ignore[attr-defined]
    assert kinds - NOT_OF_THE_MODEL
    assert record["details"]["active_tests"]["planted_total"] > 0  # type: ignore[index]
