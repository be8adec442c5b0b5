"""A run with many systems stays readable: no bands over each other, narrow panels, a few image grids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from squint.report import page, write_report
from squint.report.curves import MOST_BANDS, accuracy_figure, losses_figure
from squint.report.results import parse_results
from squint.report.run import Epoch

MakeRecord = Callable[..., dict[str, Any]]
Build = Callable[..., Path]


def crowd(results: dict[str, Any], record: MakeRecord, count: int) -> dict[str, Any]:
    names = [f"system{place}" for place in range(count)]
    results["systems"] = [{**results["systems"][0], "name": name, "title": name} for name in names]
    results["records"] = [record("lsq", k) | {"system": name} for name in names for k in (5, 8)]
    return results


def test_bands_are_drawn_for_a_few_lines_only(results: dict[str, Any], record: MakeRecord) -> None:
    captions = []
    for count in (MOST_BANDS, MOST_BANDS + 1):
        figure = accuracy_figure(parse_results(crowd(results, record, count)))
        assert figure is not None
        captions.append(figure.caption)
    assert ["the bands are 95 % intervals" in caption for caption in captions] == [True, False]


def test_many_panels_stand_in_three_narrow_columns(results: dict[str, Any], record: MakeRecord) -> None:
    parsed = parse_results(crowd(results, record, 12))
    epochs = {
        name: [Epoch(k, {"member_ce": 1 / k, "total": 1 / k}, None) for k in (1, 2)]
        for name in parsed.names()
    }
    figure = losses_figure(parsed, epochs)
    assert figure is not None
    height = float(str(ElementTree.fromstring(figure.svg).get("height")).removesuffix("pt")) / 72
    assert 4 * 1.7 < height < 12 / 2 * 2.3


def test_a_few_systems_images_are_shown_and_the_rest_is_named(
    results: dict[str, Any],
    record: MakeRecord,
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page, "MOST_EXAMPLES", 1)
    folder = build(tmp_path, results | {"records": [record("squint_a", 5)], "plane": []})
    (folder / "log.jsonl").unlink()
    shutil.copy(folder / "examples" / "lsq.npz", folder / "examples" / "squint_b.npz")
    html = write_report(folder).read_text(encoding="utf-8")
    assert html.count('data-figure="examples_') == 1
    assert 'data-figure="examples_squint_a"' in html
    assert "of 3 whose images are kept" in html
