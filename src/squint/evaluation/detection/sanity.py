"""Is a detector too good? What a robust detector would imply for robust classification (Tramèr 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from squint._checks import format_fraction
from squint.evaluation.records import Finding


@dataclass(frozen=True)
class Published:
    """A published robust accuracy: the best known to us under a standard attack, with its source."""

    dataset: str
    norm: str
    eps: float
    accuracy: float
    source: str


PUBLISHED = (
    Published(
        "cifar10", "linf", 8 / 255, 0.7528, "Amini et al. 2024, arXiv:2406.05927, AutoAttack, RobustBench"
    ),
    Published(
        "cifar100", "linf", 8 / 255, 0.4478, "Amini et al. 2024, arXiv:2406.05927, AutoAttack, RobustBench"
    ),
)
"""Best published robust accuracies; no larger radius is easier, so each bounds all above its own."""


def too_good(
    dataset: str | None,
    norm: str,
    eps: float,
    accuracy: float,
    *,
    published: tuple[Published, ...] = PUBLISHED,
) -> Finding | None:
    """Return a red flag if accuracy with rejection at eps exceeds the best published accuracy at eps/2.

    A classifier with a detector that is robust at eps can be turned, at an exponential cost in time, into a
    classifier without one that is robust at eps/2 (Tramèr 2022, theorem 4). A detector above the best robust
    classifiers at half its radius has more probably been attacked too weakly. The figure with the largest
    radius of at most eps/2 is compared: no published accuracy at eps/2 can be above it.

    Args:
        dataset: name of the data set, or None if it has none.
        norm: "linf" or "l2".
        eps: radius of the attack on classifier and detector.
        accuracy: robust accuracy with rejection.
        published: figures to compare with.
    """
    known = [p for p in published if (p.dataset, p.norm) == (dataset, norm) and p.eps <= eps / 2 * (1 + 1e-9)]
    if not known:
        return None
    best = max(known, key=lambda p: p.eps)
    if accuracy <= best.accuracy:
        return None
    return Finding(
        "detector_too_good",
        f"{accuracy:.1%} with rejection at eps {format_fraction(eps)} is above the best published robust "
        f"accuracy at half of it, {best.accuracy:.1%} at {format_fraction(best.eps)} ({best.source})",
        {"accuracy": accuracy, "published": best.accuracy, "published_eps": format_fraction(best.eps)},
    )
