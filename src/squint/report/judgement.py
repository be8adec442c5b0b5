"""What a run says about the hypothesis, as its `results.json` holds it."""

from __future__ import annotations

from dataclasses import dataclass

from squint.report.fields import Fields, Interval


@dataclass(frozen=True)
class Comparison:
    """A collection beside one of its rivals: the difference of accuracies, as fractions, and the verdict."""

    collection: str
    compared_with: str
    against: str
    mean: float
    ci95: Interval
    verdict: str
    images: int
    seeds: int


@dataclass(frozen=True)
class Judgement:
    """All comparisons under one attack, and what follows from them in words."""

    attack: str
    eps: str
    margin: float
    comparisons: tuple[Comparison, ...]
    conclusions: tuple[str, ...]


def parse_judgement(top: Fields) -> Judgement | None:
    """Return what the file says about the hypothesis, or None where the run is not about it.

    Raises:
        InputError: on a value that is not allowed, with its place in one line.
    """
    if not top.data.get("hypothesis"):
        return None
    f = Fields(top.data["hypothesis"], f"{top.where}: hypothesis")
    return Judgement(
        attack=f.text("attack"),
        eps=f.text("eps"),
        margin=f.number("margin", 0, 1),
        comparisons=tuple(_comparison(each) for each in f.objects("comparisons")),
        conclusions=tuple(each.text("words") for each in f.objects("conclusions")),
    )


def _comparison(f: Fields) -> Comparison:
    return Comparison(
        collection=f.text("collection"),
        compared_with=f.text("with"),
        against=f.text("against"),
        mean=f.number("mean", -1, 1),
        ci95=f.interval("ci95", -2, 2),
        verdict=f.text("verdict"),
        images=f.whole("images"),
        seeds=f.whole("seeds"),
    )
