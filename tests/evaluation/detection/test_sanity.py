from __future__ import annotations

import pytest

from squint.evaluation.detection.sanity import PUBLISHED, Published, too_good


def test_a_detector_above_published_accuracy_at_half_its_radius_is_a_red_flag() -> None:
    finding = too_good("cifar10", "linf", 16 / 255, 0.80)
    assert finding is not None
    assert finding.kind == "detector_too_good"
    assert "75.3%" in finding.message
    assert "8/255" in finding.message
    assert finding.measured["published"] == 0.7528


@pytest.mark.parametrize(
    ("dataset", "norm", "eps", "accuracy"),
    [
        ("cifar10", "linf", 16 / 255, 0.75),
        ("cifar10", "linf", 15 / 255, 0.99),
        ("cifar10", "l2", 1.0, 0.99),
        ("digits", "linf", 0.5, 0.99),
        (None, "linf", 0.5, 0.99),
    ],
)
def test_nothing_is_flagged_without_a_figure_that_applies(
    dataset: str | None, norm: str, eps: float, accuracy: float
) -> None:
    assert too_good(dataset, norm, eps, accuracy) is None


def test_the_largest_radius_that_applies_is_compared() -> None:
    table = tuple(Published("d", "linf", eps, a, "here") for eps, a in ((0.1, 0.9), (0.2, 0.6), (0.4, 0.1)))
    found = too_good("d", "linf", 0.5, 0.7, published=table)
    assert found is not None
    assert found.measured["published"] == 0.6
    assert too_good("d", "linf", 0.3, 0.7, published=table) is None


def test_every_published_figure_names_its_source() -> None:
    assert all("arXiv" in entry.source and 0 < entry.accuracy < 1 for entry in PUBLISHED)
