from __future__ import annotations

import pytest
import torch
from torch import Tensor

from squint import InputError
from squint.evaluation.flags import Comparison, above_ceilings, excesses, rising


def outcome(right: int, n: int = 100) -> Tensor:
    return (torch.arange(n) < right).double()


def compare(lower: Tensor, upper: Tensor) -> list[str]:
    return [finding.kind for finding in excesses([Comparison("kind", "weak", lower, "strong", upper)])]


def test_an_excess_beyond_one_point_and_two_standard_errors_is_found() -> None:
    # 10 of 100 images turn right: d = 0.10, e = sqrt(0.1 * 0.9 / 99) = 0.0302, (d - 0.01)/e = 2.98.
    assert compare(outcome(40), outcome(50)) == ["kind"]
    # 5 of 100: d = 0.05, e = 0.0219, 1.83.
    assert compare(outcome(40), outcome(45)) == []


def test_the_comparison_has_one_direction() -> None:
    assert compare(outcome(50), outcome(40)) == []
    assert compare(outcome(50), outcome(50)) == []


def test_pairing_counts_not_the_totals() -> None:
    # The same two accuracies as above, but on images that differ: e = 0.0962, and the excess is noise.
    lower = outcome(40)
    assert compare(lower, torch.cat([1 - lower[:45], 1 - lower[45:]]) * 0.8) == []


def test_a_constant_excess_of_at_most_one_point_is_none() -> None:
    lower = torch.full((64,), 0.5)
    assert compare(lower, lower + 0.01) == []
    assert compare(lower, lower + 0.02) == ["kind"]


def test_holm_needs_more_of_one_among_many() -> None:
    # 7 of 100: d = 0.07, e = 0.0256, z = 2.34: beyond two errors alone, not among ten (z = 2.84).
    alone = Comparison("kind", "weak", outcome(40), "strong", outcome(47))
    null = Comparison("other", "weak", outcome(40), "strong", outcome(40))
    assert len(excesses([alone])) == 1
    assert excesses([alone, *[null] * 9]) == []
    sure = Comparison("sure", "weak", outcome(40), "strong", outcome(70))
    # Step-down: the sure one goes first at a tenth of the level, the next is held against a ninth.
    assert [finding.kind for finding in excesses([alone, sure, *[null] * 8])] == ["sure"]


def test_holm_keeps_its_level_over_a_family_of_nulls() -> None:
    generator = torch.Generator().manual_seed(0)
    false_alarms = 0
    for _ in range(200):
        base, comparisons = torch.rand(100, generator=generator), []
        for _ in range(10):
            shift = 0.01 + 0.1 * torch.randn(100, generator=generator)
            comparisons.append(Comparison("kind", "weak", base, "strong", base + shift))
        false_alarms += bool(excesses(comparisons))
    # The truth sits on the margin of one point. Level 0.0228, a little more for the estimated error (t, 99
    # degrees): at most 0.035 of 200 runs, plus three standard errors of 0.013.
    assert false_alarms <= 200 * (0.035 + 3 * 0.013)


def test_rising_compares_every_pair_in_order() -> None:
    settings = [("5", outcome(50)), ("20", outcome(20)), ("50", outcome(52))]
    findings = excesses(rising("rises_with_steps", settings))
    assert {(f.measured["lower"], f.measured["upper"]) for f in findings} == {("20", "50")}
    assert findings[0].measured["lower_accuracy"] == pytest.approx(0.2)
    assert "52.0% under 50" in findings[0].message


def test_accuracy_above_the_largest_class_at_grey() -> None:
    labels = torch.tensor([0] * 40 + [1] * 60)
    grey = 128 / 255
    (finding,) = above_ceilings({grey: outcome(61)}, labels, {grey: None})
    assert finding.kind == "accurate_at_large_eps"
    assert finding.measured == {"eps": "128/255", "accuracy": 0.61, "ceiling": 0.6, "n": 100}
    assert above_ceilings({grey: outcome(60)}, labels, {grey: None}) == []


def test_a_ceiling_of_its_own() -> None:
    labels, eps = torch.arange(100) % 10, 64 / 255
    assert above_ceilings({eps: outcome(5)}, labels, {eps: 0.05}) == []
    assert len(above_ceilings({eps: outcome(6)}, labels, {eps: 0.05})) == 1


def test_outcomes_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="the same images"):
        compare(outcome(1, 5), outcome(1, 6))
    with pytest.raises(InputError, match="2 or more"):
        compare(outcome(1, 1), outcome(1, 1))
