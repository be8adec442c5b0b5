"""What a ladder measured beside its figure: other rules, margins, more draws, and which rung broke what."""

from __future__ import annotations

from dataclasses import dataclass

from squint._checks import printable
from squint.report.fields import Fields


@dataclass(frozen=True)
class SweepEntry:
    """Accuracy of the same images with another number of draws S, and seconds per image and prediction."""

    draws: int
    accuracy: float
    seconds: float | None


@dataclass(frozen=True)
class LadderDetails:
    """Figures of one ladder record; shares are of images, `known_randomness` is None without randomness.

    Attributes:
        uint8_accuracy: of the worst points rounded to 8 bits.
        known_randomness: accuracy where the attacker knows the draws.
        near: share of the worst points with |margin| < 0.1.
        sweep: more and fewer draws.
        broken_on_clean: images that err without any attack.
        broken_by: images that each rung was the first to break.
        unbroken: images that no rung broke.
        gradients_per_broken: gradients spent per broken image.
    """

    uint8_accuracy: float | None
    known_randomness: float | None
    near: float | None
    sweep: tuple[SweepEntry, ...]
    broken_on_clean: int | None
    broken_by: tuple[tuple[str, int], ...]
    unbroken: int | None
    gradients_per_broken: float | None


def parse_details(record: Fields) -> LadderDetails | None:
    """Return what a record says of its ladder, or None where it is of another attack.

    Raises:
        InputError: on a value that is not allowed, with its place in one line.
    """
    if not record.data.get("details") or "broken_by" not in record.mapping("details"):
        return None
    f = Fields(record.mapping("details"), f"{record.where}: details")
    broken = Fields(f.mapping("broken_by"), f"{f.where}: broken_by")
    margins = Fields(f.mapping("margins"), f"{f.where}: margins")
    return LadderDetails(
        uint8_accuracy=f.optional_number("uint8_accuracy", 0, 1),
        known_randomness=f.optional_number("known_randomness_accuracy", 0, 1),
        near=margins.optional_number("below_0.1", 0, 1),
        sweep=tuple(
            SweepEntry(
                each.whole("draws"), each.number("accuracy", 0, 1), each.optional_number("seconds_per_image")
            )
            for each in f.objects("sweep")
        ),
        broken_on_clean=f.optional_whole("broken_on_clean"),
        broken_by=tuple((printable(name), broken.whole(name)) for name in broken.data),
        unbroken=f.optional_whole("unbroken"),
        gradients_per_broken=f.optional_number("gradients_per_broken"),
    )
