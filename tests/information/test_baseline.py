"""Baselines and intervals against what they claim: zero dependence, and coverage."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from squint import information
from squint._checks import InputError, InputTypeError
from squint.information import (
    bootstrap_interval,
    gaussian_mutual_information,
    ksg,
    shuffled_baseline,
    soft_label_conditional_mutual_information,
    soft_label_mutual_information,
)


def labels(n: int, classes: int, generator: torch.Generator) -> Tensor:
    return one_hot(torch.randint(0, classes, (n,), generator=generator), classes).double()


def test_baseline_is_the_bias_at_independence() -> None:
    generator = torch.Generator().manual_seed(0)
    p = labels(200, 4, generator)
    result = shuffled_baseline(soft_label_mutual_information, p, p, generator=generator, repeats=200)
    # 2n·I of independent labels is chi-squared with (c − 1)² = 9 degrees to first order; then 1/n.
    assert abs(result.mean - 9 / 400) < 4 * result.deviation / math.sqrt(200) + 0.05 * 9 / 400
    assert result.deviation == pytest.approx(
        math.sqrt(18) / 400, rel=0.25
    )  # 5 standard errors of a deviation


def test_with_labels_pairs_stay_within_their_class() -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 5, (60,), generator=generator)
    seen: list[Tensor] = []

    def record(z1: Tensor, z2: Tensor) -> float:
        assert torch.equal(z1.squeeze(1), y.double())
        assert torch.equal(z2[:, 0], y.double())
        seen.append(z2[:, 1])
        return 0.0

    rows = torch.stack([y.double(), torch.arange(60, dtype=torch.float64)], 1)
    shuffled_baseline(record, y.double().unsqueeze(1), rows, generator=generator, repeats=3, y=y)
    assert all(torch.equal(order.sort().values, rows[:, 1]) for order in seen)
    assert not torch.equal(seen[0], seen[1])


def test_conditional_baseline_of_labels_shared_through_the_class() -> None:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(300) % 3
    noise = [torch.rand(300, generator=generator) < 0.3 for _ in range(2)]
    p, q = (one_hot((y + n.long()) % 3, 3).double() for n in noise)

    def conditional(a: Tensor, b: Tensor) -> Tensor:
        return soft_label_conditional_mutual_information(a, b, y)

    baseline = shuffled_baseline(conditional, p, q, generator=generator, repeats=100, y=y)
    # Independent given the class, two labels seen in each: 3 classes · (2 − 1)² / 2n.
    assert baseline.mean == pytest.approx(3 / 600, abs=4 * baseline.deviation / 10 + 0.0005)
    assert float(conditional(p, q)) < baseline.mean + 5 * baseline.deviation
    assert float(soft_label_mutual_information(p, q)) > 20 * baseline.mean


@pytest.mark.parametrize("replacement", [True, False])
def test_interval_covers_as_often_as_it_says(replacement: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    rho, rounds, covered = 0.6, 60, 0
    truth = -0.5 * math.log(1 - rho**2)
    for _ in range(rounds):
        a, b = torch.randn(2, 120, 1, dtype=torch.float64, generator=generator)
        low, high = bootstrap_interval(
            gaussian_mutual_information,
            a,
            rho * a + 0.8 * b,
            generator=generator,
            repeats=60,
            replacement=replacement,
        )
        covered += low <= truth <= high
    # 95 % less what 60 resamples' quantiles lose (3 %), within four binomial deviations of 3.5 %.
    assert 60 * (0.92 - 0.14) <= covered < 60


def test_intervals_hold_the_estimate_and_widen_with_the_level() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 100, 1, generator=generator)
    estimate = float(ksg(a, a + b))
    widths = []
    for level in (0.5, 0.95):
        low, high = bootstrap_interval(
            ksg,
            a,
            a + b,
            generator=torch.Generator().manual_seed(5),
            repeats=40,
            level=level,
            replacement=False,
        )
        assert low < estimate < high
        widths.append(high - low)
    assert widths[0] < widths[1]


def test_same_generator_same_answer() -> None:
    a = torch.randn(30, 1, generator=torch.Generator().manual_seed(6))

    def run() -> tuple[float, float]:
        return bootstrap_interval(
            lambda z: z.mean(), a, generator=torch.Generator().manual_seed(7), repeats=20
        )

    assert run() == run()


def test_bad_arguments_are_named() -> None:
    generator = torch.Generator().manual_seed(8)
    a, b = torch.zeros(10, 1), torch.zeros(9, 1)
    with pytest.raises(InputError, match="z2 has 9 rows"):
        shuffled_baseline(ksg, a, b, generator=generator)
    with pytest.raises(InputError, match="repeats is 1"):
        shuffled_baseline(ksg, a, a, generator=generator, repeats=1)
    with pytest.raises(InputError, match=r"tensors\[1\] has 9 rows"):
        bootstrap_interval(ksg, a, b, generator=generator)
    with pytest.raises(InputError, match="level is 1"):
        bootstrap_interval(ksg, a, a, generator=generator, level=1)
    with pytest.raises(InputError, match="tensors is empty"):
        bootstrap_interval(ksg, generator=generator)
    with pytest.raises(InputError, match="1 rows"):
        bootstrap_interval(ksg, a[:1], generator=generator)


def test_the_package_names_what_it_exports() -> None:
    assert sorted(information.__all__) == list(information.__all__)
    assert all(callable(getattr(information, name)) for name in information.__all__)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (math.nan, InputError, "estimator returned nan; needed: a finite number"),
        (torch.tensor(math.inf), InputError, "estimator returned inf"),
        ([1.0], InputTypeError, "estimator returned a list; needed: one number"),
        (torch.zeros(2), InputTypeError, r"Tensor of shape \(2,\)"),
    ],
)
def test_estimators_that_return_no_finite_number_are_refused(
    value: Any, error: type[Exception], words: str
) -> None:
    a, generator = torch.zeros(4, 1), torch.Generator().manual_seed(9)
    with pytest.raises(error, match=words):
        shuffled_baseline(lambda *_: value, a, a, generator=generator)
    with pytest.raises(error, match=words):
        bootstrap_interval(lambda *_: value, a, generator=generator)


def test_lists_and_levels_that_are_no_numbers_are_refused() -> None:
    a, generator = torch.zeros(4, 1), torch.Generator().manual_seed(10)
    wrong: Any = [[0.0]] * 4
    with pytest.raises(InputTypeError, match=r"z2 must be a torch\.Tensor, got list"):
        shuffled_baseline(ksg, a, wrong, generator=generator)
    with pytest.raises(InputTypeError, match=r"tensors\[0\] must be a torch.Tensor, got list"):
        bootstrap_interval(ksg, wrong, generator=generator)
    with pytest.raises(InputError, match=r"z1 has shape \(0, 1\)"):
        shuffled_baseline(ksg, a[:0], a[:0], generator=generator)
    for level in ("0.95", math.nan, None, 0):
        with pytest.raises(InputError, match="level is"):
            bootstrap_interval(ksg, a, generator=generator, level=level)  # type: ignore[arg-type]
