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
