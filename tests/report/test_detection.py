"""Detection in the report: its words and drawings are checked against the numbers that went in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from tests.report.detection_data import detection, record

from squint._checks import InputError
from squint.report import write_report
from squint.report.detection import Detection, read_detection
from squint.report.detection_figures import (
    MOST_PANELS,
    histogram_figure,
    panel_title,
    rejection_figure,
    roc_figure,
    shown,
)
from squint.report.detection_page import HEIGHT, WIDTH, detection_fragment, sentence
from squint.report.detection_rows import MOST_LINES, rows
from squint.report.results import parse_results
from squint.report.run import read_run
from squint.report.style import LIGHT, drawing

Results = dict[str, Any]
SVG = re.compile(r"<svg viewBox=\"0 0 460.*?</svg>", re.DOTALL)


def read(folder: Path, data: dict[str, Any]) -> Detection:
    (folder / "detection.json").write_text(json.dumps(data))
    found = read_detection(folder)
    assert found is not None
    return found


def test_the_attacked_figure_comes_first_and_the_other_never_stands_alone(
    results: Results, tmp_path: Path
) -> None:
    parsed = parse_results(results)
    found = read(tmp_path, detection())
    words = sentence(found.records[0], parsed)
    assert "68.0 % right or flagged [61.0, 74.0] and AUROC 0.600 where the detector is attacked" in words
    assert words.index("0.600") < words.index("0.900")
    fragment = detection_fragment(found, parsed)
    assert fragment is not None
    assert fragment.count("0.900") >= 1
    for figure in (roc_figure(found, parsed), rejection_figure(found, parsed)):
        assert figure is not None
        assert figure.alt.index("attacked") < figure.alt.index("not")
    accuracy = rejection_figure(found, parsed)
    assert accuracy is not None
    assert "5/255: 68.0 % attacked, 88.0 % not attacked" in accuracy.alt
    assert "5.0 % stated false alarms" in accuracy.caption


def test_every_line_of_the_drawing_stands_where_its_numbers_are(results: Results, tmp_path: Path) -> None:
    fragment = detection_fragment(read(tmp_path, detection()), parse_results(results))
    assert fragment is not None
    (text,) = SVG.findall(fragment)
    drawing = ElementTree.fromstring(text)
    lines = {}
    for group in drawing.iter("g"):
        if "roc" in group.get("class", ""):
            line = group.find("polyline")
            assert line is not None
            lines[line.findtext("title", "")] = (line.get("points", ""), list(group.findall("circle")))
    assert list(lines) == [
        "pgd (does not know the detector): AUROC 0.900 [0.850, 0.950]",
        "selective (on the detector): AUROC 0.600 [0.550, 0.650]",
    ]
    points, dots = lines["selective (on the detector): AUROC 0.600 [0.550, 0.650]"]
    across, down = zip(*(map(float, pair.split(",")) for pair in points.split()), strict=True)
    left, right, low, high = across[0], across[-1], down[0], down[-1]
    assert 0 < left < right < WIDTH
    assert 0 < high < low < HEIGHT
    assert (down[25] - low) / (high - low) == pytest.approx(0.25**0.7, abs=1e-3)
    assert (across[25] - left) / (right - left) == pytest.approx(0.25, abs=1e-3)
    assert len(dots) == 5
    assert dots[1].findtext("title") == "selective: 5.0 % false alarms, 12.3 % of its successes flagged"
    assert float(dots[1].get("cx", "nan")) == across[5]


def test_tables_hold_every_attack_and_control(results: Results, tmp_path: Path) -> None:
    fragment = detection_fragment(read(tmp_path, detection()), parse_results(results))
    assert fragment is not None
    rows = re.findall(r'<td class="words">(.*?)</td>', fragment)
    assert rows == [
        "pgd",
        "selective, on the detector",
        "agreement, on the detector",
        "control: noise",
        "control: fog 3",
        "control: clean, misclassified",
    ]
    assert "no success" in fragment
    assert "39.0<small>up to 10 times</small>" in fragment
    assert "Not measured: full_precision" in fragment
    assert "trusted</strong>" in fragment
    assert "UNTRUSTED" not in fragment


def test_red_flags_stand_beside_their_figure(results: Results, tmp_path: Path) -> None:
    flag = {"kind": "detector_attack_budget", "message": "attacks had 8 steps", "measured": {"steps": 8}}
    both = [
        record(red_flags=[flag], trusted=False, score=s) for s in ("predictive_information", "neighbours")
    ]
    data = detection(*both)
    parsed, found = parse_results(results), read(tmp_path, data)
    fragment = detection_fragment(found, parsed)
    assert fragment is not None
    assert "UNTRUSTED" in fragment
    assert fragment.count("attacks had 8 steps") == 1
    assert "5/255, predictive information, neighbours: attacks had 8 steps" in fragment
    figure = roc_figure(found, parsed)
    assert figure is not None
    assert "untrusted" in figure.caption
    # A claim of trust beside a red flag is not believed.
    assert not read(tmp_path, detection(record(red_flags=[flag], trusted=True))).records[0].trusted


def test_panels_are_those_nearest_the_headline(results: Results, tmp_path: Path) -> None:
    many = [record(eps=f"{k}/255") for k in range(1, 15)]
    parsed, found = parse_results(results), read(tmp_path, detection(*many))
    panels = shown(found, parsed)
    assert len(panels) == MOST_PANELS
    assert panels[0].eps == "5/255"
    assert not {"13/255", "14/255"} & {panel.eps for panel in panels}
    fragment = detection_fragment(found, parsed)
    assert fragment is not None
    assert len(SVG.findall(fragment)) == MOST_PANELS
    assert "The 12 panels are those nearest" in fragment


def test_many_detectors_are_told_apart(results: Results, tmp_path: Path) -> None:
    names = ["entropy", "neighbours", "reference_information", "jensen_shannon", "combination"]
    many = [record(score=name, accuracy_with_rejection=0.5 + k / 100) for k, name in enumerate(names)]
    parsed = parse_results(results)
    few = read(tmp_path, detection(*many[:MOST_LINES]))
    line = rejection_figure(few, parsed)
    assert line is not None
    assert line.title == "Accuracy with rejection against eps"
    found = read(tmp_path, detection(*many, record(eps="9/255", accuracy_with_rejection=0.3)))
    titles = [panel_title(r, parsed, found.records) for r in found.records]
    assert titles[2] == "reference information, 5/255"
    assert len(set(titles)) == len(titles)
    for figure in (roc_figure(found, parsed), histogram_figure(found, parsed)):
        assert figure is not None
        assert all(title in figure.alt for title in titles)
    dots = rejection_figure(found, parsed)
    assert dots is not None
    assert dots.title == "Accuracy with rejection at eps 5/255"
    assert "combination, 5/255: 54.0 % attacked, 88.0 % not attacked" in dots.alt
    assert "9/255" not in dots.alt


def test_rows_stand_at_their_figures(tmp_path: Path) -> None:
    many = [record(score=name, accuracy_with_rejection=a) for name, a in (("entropy", 0.6), ("votes", 0.4))]
    found = read(tmp_path, detection(*many))
    with drawing(LIGHT):
        figure = rows(found.records, ["entropy", "votes"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["votes", "entropy"]
    interval, attacked, free = axes.collections
    assert np.asarray(attacked.get_offsets()).tolist() == [[40.0, 0.0], [60.0, 1.0]]
    assert np.asarray(free.get_offsets()).tolist() == [[88.0, 0.0], [88.0, 1.0]]
    assert isinstance(interval, LineCollection)
    ends = [np.asarray(segment)[:, 0].tolist() for segment in interval.get_segments()]
    assert ends == [[61.0, 74.0], [61.0, 74.0]]


def test_scores_are_drawn_with_their_threshold(results: Results, tmp_path: Path) -> None:
    parsed = parse_results(results)
    figure = histogram_figure(read(tmp_path, detection()), parsed)
    assert figure is not None
    assert "threshold 0.25, 6.0 % of clean deployments above it" in figure.alt
    assert figure.png.startswith(b"\x89PNG")
    assert b"<svg" in figure.svg
    again = histogram_figure(read(tmp_path, detection()), parsed)
    assert again is not None
    assert again.svg == figure.svg


def test_accuracy_at_eps_0_counts_what_is_right_or_flagged(tmp_path: Path) -> None:
    (r,) = read(tmp_path, detection()).records
    assert r.clean_with_rejection == pytest.approx(0.93)
    assert r.patience is not None
    assert r.patience.tries == 10
    worst = r.worst(adaptive=True)
    assert worst is not None
    assert worst.attack == "selective"


def test_the_page_shows_detection_and_the_measured_plane(
    build: Callable[..., Path], report: Path, tmp_path: Path
) -> None:
    assert "No detector was measured" in report.read_text()
    run = build(tmp_path / "run")
    (run / "detection.json").write_text(json.dumps(detection()))
    rows = read_run(run).results.plane
    row = {"system": "squint_a", "threat": "clean", "eps": "0", "strength": None, "information": 0.5,
           "baseline": 0.0, "accuracy": 0.5, "n": 7, "estimator": "renyi"}  # fmt: skip
    (run / "plane.json").write_text(json.dumps({"rows": [row]}))
    page = write_report(run).read_text()
    assert "No detector was measured" not in page
    assert 'id="roc-attack-1"' in page
    for name in ("detection_roc", "detection_scores", "detection_accuracy"):
        assert (run / "figures" / f"{name}.png").is_file()
        assert (run / "figures" / f"{name}.svg").is_file()
    assert len(rows) != 1
    assert [p.n for p in read_run(run).results.plane] == [7]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(format_version=9), "format_version is 9"),
        (lambda d: d.update(curves=[]), "curves has none of squint_a, predictive_information, 5/255"),
        (lambda d: d["records"][0].update(trusted="yes"), "trusted is 'yes'"),
        (lambda d: d["records"][0].update(accuracy_with_rejection=1.2), "accuracy_with_rejection is 1.2"),
        (lambda d: d["records"][0]["attacks"][0]["separation"].pop("auroc"), "has no 'auroc'"),
        (lambda d: d["curves"][0]["histograms"]["shares"].update(noise=[1.0]), "noise needs 2 shares"),
        (lambda d: d["curves"][0]["roc"]["pgd"].update(tpr=[0.5]), "fpr has 101 points and tpr 1"),
        (lambda d: d["curves"][0]["roc"]["pgd"].update(tpr="x"), "tpr is no list of numbers"),
        (lambda d: d["curves"][0]["roc"]["pgd"]["tpr"].__setitem__(0, 10**400), "tpr is "),
        (lambda d: d["curves"][0]["roc"]["pgd"]["tpr"].__setitem__(0, "x"), "tpr is 'x'"),
        (lambda d: d["records"][0]["persistent"].update(many={}), "has 'many'; allowed: numbers of"),
    ],
)
def test_damage_is_named_with_its_place(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], message: str
) -> None:
    data = detection()
    damage(data)
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, data)
    (tmp_path / "detection.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_detection(tmp_path)
