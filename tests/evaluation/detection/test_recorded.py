"""The documented tables are what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.detection import table

ROOT = Path(__file__).parents[3]
RECORDS = ("detection-digits/full-budget", "detection-cifar10/patch")


@pytest.mark.parametrize("record", RECORDS)
def test_the_documented_table_is_what_the_record_says(record: str) -> None:
    documented = (ROOT / "docs" / "detection.md").read_text(encoding="utf-8").splitlines()
    lines = table([ROOT / "results" / record / "detection.json"])
    assert len(lines) > 2
    start = documented.index(lines[2])
    assert documented[start - 2 : start - 2 + len(lines)] == lines
