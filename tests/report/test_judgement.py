"""What a run says about the hypothesis, on the page; and findings said once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from squint._checks import InputError
from squint.report import write_report
from squint.report.results import parse_results
from squint.report.table import flag_groups, rows_of

Build = Callable[..., Path]


def judgement() -> dict[str, Any]:
    comparison = {
        "collection": "squint_a", "against": "lsq", "role": "best member", "with": "its best member alone",
        "attack": "pgd", "eps": "5/255", "verdict": "helps", "mean": 0.061, "ci95": [0.03, 0.092],
        "images": 400, "seeds": 1,
    }  # fmt: skip
    return {
        "attack": "pgd", "eps": "5/255", "margin": 0.02, "comparisons": [comparison],
        "conclusions": [{"collection": "squint_a", "words": "The collection <b>beats</b> its best member."}],
    }  # fmt: skip


def test_a_run_about_the_hypothesis_says_so_on_its_page(
    build: Build, results: dict[str, Any], tmp_path: Path
) -> None:
    results |= {"hypothesis": judgement(), "records": [], "plane": []}
    page = write_report(build(tmp_path, results, only_results=True)).read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "Is the collection more than its members?" in text
    assert "The collection &lt;b&gt;beats&lt;/b&gt; its best member." in text
    assert "its best member alone Deterministic 4-bit network (LSQ) +6.1 [+3.0, +9.2] helps 400 1" in text
    assert 'href="#hypothesis"' in page


def test_other_runs_have_no_such_section(build: Build, results: dict[str, Any], tmp_path: Path) -> None:
    results |= {"records": [], "plane": []}
    page = write_report(build(tmp_path, results, only_results=True)).read_text(encoding="utf-8")
    assert "hypothesis" not in page


def test_a_judgement_that_is_not_allowed_is_named(results: dict[str, Any]) -> None:
    results["hypothesis"] = judgement()
    results["hypothesis"]["comparisons"][0]["mean"] = 2
    with pytest.raises(InputError, match=r"hypothesis: comparisons\[0\]: mean is 2"):
        parse_results(results)
    results["hypothesis"] = [1]
    with pytest.raises(InputError, match="hypothesis is list"):
        parse_results(results)


def test_a_finding_is_said_once_with_its_systems(results: dict[str, Any]) -> None:
    shared = {"kind": "no_active_tests", "message": "not run", "measured": {}}
    for record in results["records"]:
        own = [flag for flag in record["red_flags"] if isinstance(flag, dict)]
        record |= {"red_flags": [shared, *own], "trusted": False}
    groups = flag_groups(rows_of(parse_results(results)))
    assert [(systems, flag.message) for systems, flag in groups] == [
        ("every system", "not run"),
        (
            "Deterministic 4-bit network (LSQ)",
            "Square finds adversarial points for images that PGD leaves standing",
        ),
    ]


def test_trusted_rows_have_no_findings(results: dict[str, Any]) -> None:
    results["records"] = [r | {"red_flags": [], "trusted": True} for r in results["records"]]
    assert flag_groups(rows_of(parse_results(results))) == []
