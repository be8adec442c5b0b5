"""Names in a drawing: beside their points, on nothing else."""

from __future__ import annotations

import random

import pytest

from squint.report.labels import Box, Label, place_labels

FRAME = Box(0, 0, 1000, 600)
HEIGHT, GAP = 14.0, 6.0


def placed(
    points: list[tuple[float, float]], widths: list[float], obstacles: tuple[Box, ...] = ()
) -> list[Label]:
    return place_labels(points, widths, HEIGHT, GAP, FRAME, obstacles)


def test_overlap_of_rectangles() -> None:
    box = Box(0, 0, 4, 2)
    assert box.overlap(Box(3, 1, 9, 9)) == 1.0
    assert box.overlap(Box(4, 0, 5, 2)) == 0.0
    assert box.overlap(box) == 8.0
    assert box.outside(Box(1, 0, 9, 9)) == 2.0
    assert box.outside(Box(-1, -1, 9, 9)) == 0.0


def test_a_lonely_name_stands_on_the_right_of_its_point() -> None:
    (label,) = placed([(500.0, 300.0)], [80.0])
    assert label == Label(Box(508.4, 293.0, 588.4, 307.0), led=False)


def test_a_name_at_the_right_end_stands_on_the_left() -> None:
    (label,) = placed([(990.0, 300.0)], [80.0])
    assert label.box.x1 < 990
    assert not label.led


def test_a_name_keeps_clear_of_obstacles_and_a_line_leads_to_it() -> None:
    wall = Box(500, 280, 700, 320), Box(300, 280, 490, 320)
    (label,) = placed([(495.0, 300.0)], [80.0], wall)
    assert sum(label.box.overlap(each) for each in wall) == 0
    assert label.led


@pytest.mark.parametrize("seed", range(3))
def test_fifteen_names_cover_no_point_and_no_other_name(seed: int) -> None:
    """Points as a study has them: a few costs, accuracies anywhere, names of up to half the drawing."""
    rng = random.Random(seed)
    costs = [150.0, 330.0, 520.0, 700.0]
    points = [(rng.choice(costs) + 18 * k, rng.uniform(40, 560)) for k in range(15)]
    widths = [rng.uniform(30, 200) for _ in points]
    labels = placed(points, widths)
    boxes = [label.box for label in labels]
    for place, box in enumerate(boxes):
        assert box.outside(FRAME) == pytest.approx(0, abs=1e-9)
        assert box.x1 - box.x0 == pytest.approx(widths[place])
        assert all(not (box.x0 < x < box.x1 and box.y0 < y < box.y1) for x, y in points)
        assert sum(box.overlap(other) for other in boxes[:place]) == 0


def test_where_everything_is_taken_the_least_is_covered() -> None:
    crowd = [(500.0 + dx, 300.0 + dy) for dx in range(-200, 201, 10) for dy in range(-200, 201, 10)]
    labels = placed([(500.0, 300.0), *crowd], [100.0] + [0.0] * len(crowd))
    assert len(labels) == len(crowd) + 1
    assert labels[0].box.outside(FRAME) == 0


def test_a_line_passes_no_other_point() -> None:
    """The second point stands where a level line would lead; there is room further up and further down."""
    points = [(300.0, 300.0), (325.0, 300.0)]
    walls = Box(0, 0, 290, 600), Box(292, 308, 420, 330), Box(292, 270, 420, 292)
    first, _ = placed(points, [80.0, 20.0], walls)
    assert first.led
    assert sum(first.box.overlap(wall) for wall in walls) == 0
    end = (min(max(300.0, first.box.x0), first.box.x1), (first.box.y0 + first.box.y1) / 2)
    assert not Box(319, 294, 331, 306).crossed(points[0], end, 1.0)


def test_names_on_one_level_keep_a_gap() -> None:
    points = [(300.0, 300.0), (420.0, 300.0)]
    first, second = (label.box for label in placed(points, [52.0, 50.0], (Box(426, 0, 999, 600),)))
    level = first.y0 < second.y1 and second.y0 < first.y1
    assert not level or second.x0 - first.x1 >= GAP or first.x0 - second.x1 >= GAP
