"""Where names stand in a drawing: beside their points, on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle, in any unit; y grows in either direction."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """Return the area that two rectangles share."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0.0) * max(height, 0.0)

    def wider(self, by: float) -> Box:
        """Return the box with this much more on its left and on its right."""
        return Box(self.x0 - by, self.y0, self.x1 + by, self.y1)

    def crossed(self, start: tuple[float, float], end: tuple[float, float], step: float) -> bool:
        """Return whether the straight line enters the box, looked at in steps of about this length."""
        count = max(1, math.ceil(math.dist(start, end) / step))
        shares = (place / count for place in range(count + 1))
        line = (tuple(a + share * (b - a) for a, b in zip(start, end, strict=True)) for share in shares)
        return any(self.x0 < x < self.x1 and self.y0 < y < self.y1 for x, y in line)

    def outside(self, frame: Box) -> float:
        """Return the area that lies outside a frame."""
        return (self.x1 - self.x0) * (self.y1 - self.y0) - self.overlap(frame)


@dataclass(frozen=True)
class Label:
    """A name's place: its box, and whether it lies so far from its point that a line has to lead there."""

    box: Box
    led: bool


def line_box(x0: float, y0: float, x1: float, y1: float, half: float) -> Box:
    """Return the box of an upright or level line that is `half` wide on either side."""
    return Box(min(x0, x1) - half, min(y0, y1) - half, max(x0, x1) + half, max(y0, y1) + half)


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    gap: float,
    frame: Box,
    obstacles: Sequence[Box] = (),
) -> list[Label]:
    """Return a place for each point's label; earlier ones choose first.

    Every label takes the nearest of a fan of places around its point that covers no point, no obstacle and no
    label before it, and whose line passes no other point; where all of them do, the one that does least.

    Args:
        points: what the labels name.
        widths: width of each label.
        height: height of every label.
        gap: distance between a point and its label; also half the side of what a point takes up.
        frame: what labels must not leave.
        obstacles: further boxes to keep clear of, such as error bars.
    """
    taken = [Box(x - gap, y - gap, x + gap, y + gap) for x, y in points]
    placed: list[Label] = []
    for place, ((x, y), width) in enumerate(zip(points, widths, strict=True)):
        best, least = None, float("inf")
        others = [box for other, box in enumerate(taken) if points[other] != points[place]]
        for left, dx, dy in _places(height):
            far = gap * (1.4 if dy == 0 else 1.0) + dx * height
            x0 = x - far - width if left else x + far
            box = Box(x0, y + dy - height / 2, x0 + width, y + dy + height / 2)
            led = dx > 0 or abs(dy) > 1.2 * height
            covered = sum(box.overlap(other) for other in taken)
            covered += sum(3 * box.overlap(label.box.wider(gap)) for label in placed)
            covered += sum(box.overlap(other) for other in obstacles) + 10 * box.outside(frame)
            if led and covered < least:
                end = (min(max(x, box.x0), box.x1), y + dy)
                covered += gap * height * sum(other.crossed((x, y), end, gap) for other in others)
            if covered < least:
                best, least = Label(box, led), covered
            if covered == 0:
                break
        assert best is not None
        placed.append(best)
    return placed


def _places(height: float) -> list[tuple[bool, float, float]]:
    """Return places around a point, the nearest first: on the left, steps away, and up or down."""
    heights = [0.0, *(sign * step * height for step in range(1, 9) for sign in (1, -1))]
    # Aside too, so that the line to a label further up or down need not cross its neighbours.
    found = [(left, dx, dy) for dy in heights for dx in (0.0, 1.0, 3.0) for left in (False, True)]
    return sorted(found, key=lambda place: abs(place[2]) + (place[1] + 0.3 * place[0]) * height)
