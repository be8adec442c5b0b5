"""Equivalence verdicts against closed forms, tables and simulated error rates."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from squint._checks import InputError, InputTypeError
from squint.evaluation.equivalence import equivalence, equivalence_of_seeds

T_95_DF_2 = 2.91998558  # 95 % quantile of Student's t, from tables
T_95_DF_4 = 2.13184679
T_975_DF_4 = 2.77644511
Z_95 = 1.64485363


def outcomes(won: int, lost: int, tied: int) -> torch.Tensor:
    return torch.cat([torch.ones(won), -torch.ones(lost), torch.zeros(tied)])


def test_images_against_the_formula_of_agresti_and_min() -> None:
    result = equivalence(outcomes(60, 40, 1900))
    mean = 20 / 2002
    error = math.sqrt((101 / 2002 - mean**2) / 2002)
    assert result.mean == pytest.approx(mean, abs=1e-12)
    # Student's t with 1,999 degrees lies 0.04 % above the normal quantile.
    assert result.interval[0] == pytest.approx(mean - Z_95 * error, abs=1e-5)
    assert result.interval[1] == pytest.approx(mean + Z_95 * error, abs=1e-5)
    assert (result.images, result.seeds, result.degrees) == (2000, 1, 1999)
    assert result.verdict == "equivalent"


@pytest.mark.parametrize(
    ("won", "lost", "tied", "verdict", "above_zero"),
    [
        (50, 50, 1900, "equivalent", None),
        (30, 8, 1962, "equivalent", True),  # real, and smaller than the margin
        (160, 40, 1800, "helps", True),
        (40, 160, 1800, "hurts", False),
        (80, 40, 1880, "undecided", True),  # real, and perhaps larger than the margin
        (0, 0, 2000, "equivalent", None),
        (0, 0, 40, "undecided", None),  # agreement of few images is no evidence
        (1, 0, 0, "undecided", None),
    ],
)
def test_verdicts(won: int, lost: int, tied: int, verdict: str, above_zero: bool | None) -> None:
    result = equivalence(outcomes(won, lost, tied))
    assert result.verdict == verdict
    assert result.above_zero is above_zero


def test_verdict_is_the_two_one_sided_tests() -> None:
    for won in range(0, 200, 7):
        result = equivalence(outcomes(won, 40, 1960 - won))
        assert (result.verdict == "equivalent") == (result.p < result.alpha)
        assert (result.verdict == "helps") == (1 - result.p_upper < result.alpha)
        low, high = result.ci95
        assert low < result.interval[0] < result.mean < result.interval[1] < high


def test_a_change_and_its_reverse() -> None:
    forward, back = equivalence(outcomes(160, 40, 1800)), equivalence(outcomes(40, 160, 1800))
    assert forward.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1e-12)
    assert forward.p_lower == pytest.approx(back.p_upper, abs=1e-12)


def test_seeds_and_images_share_the_variance() -> None:
    rows = torch.stack([outcomes(w, 0, 1000 - w) for w in (0, 10, 20, 30, 40)])
    per_image, per_seed = rows.double().mean(0), rows.double().mean(1)
    mean = 20 / 1002
    images = ((float(per_image.square().sum()) + 1) / 1002 - mean**2) / 1002
    seeds = float(per_seed.var()) / 5
    result = equivalence(rows)
    degrees = (images + seeds) ** 2 / (images**2 / 999 + seeds**2 / 4)
    assert result.mean == pytest.approx(mean, abs=1e-12)
    assert result.degrees == pytest.approx(degrees)
    half = (result.interval[1] - result.interval[0]) / 2
    assert T_95_DF_4 * math.sqrt(images + seeds) > half > Z_95 * math.sqrt(images + seeds)


def test_equal_seeds_add_nothing_and_many_images_leave_the_seeds_t() -> None:
    one = equivalence(outcomes(60, 40, 1900))
    same = equivalence(outcomes(60, 40, 1900).expand(3, -1))
    assert same.interval == pytest.approx(one.interval, abs=1e-9)
    scattered = torch.stack([torch.full((500_000,), d) for d in (0.0, 0.01, 0.02, 0.03, 0.04)])
    result = equivalence(scattered)
    error = math.sqrt(0.00025 / 5)
    assert result.interval[1] - result.mean == pytest.approx(T_95_DF_4 * error, rel=2e-3)
    assert result.ci95[1] - result.mean == pytest.approx(T_975_DF_4 * error, rel=2e-3)


def test_means_of_seeds_by_students_t() -> None:
    result = equivalence_of_seeds([0.00, 0.01, 0.02], images=500)
    assert result.interval == pytest.approx(
        (0.01 - T_95_DF_2 * 0.01 / math.sqrt(3), 0.01 + T_95_DF_2 * 0.01 / math.sqrt(3)), abs=1e-8
    )
    assert (result.images, result.seeds, result.verdict) == (0, 3, "undecided")
    assert equivalence_of_seeds([0.05, 0.051, 0.052], images=500).verdict == "helps"
    assert equivalence_of_seeds([0.001, 0.0, -0.001], images=2000).verdict == "equivalent"
    assert equivalence_of_seeds([0.0, 0.0], images=100).verdict == "undecided"


@pytest.mark.parametrize(
    ("shift", "wrong"), [(0.02, "equivalent"), (-0.02, "equivalent"), (0.02, "helps"), (-0.02, "hurts")]
)
def test_at_the_margin_a_verdict_is_given_with_chance_alpha_at_most(shift: float, wrong: str) -> None:
    rng, repeats = np.random.default_rng(3), 800
    won, lost = 0.06 + max(shift, 0), 0.06 + max(-shift, 0)
    counts = rng.multinomial(2000, [won, lost, 1 - won - lost], repeats)
    given = sum(equivalence(outcomes(*row)).verdict == wrong for row in counts.tolist())
    # The level is 5 %; four binomial standard errors above it.
    assert given / repeats < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_a_report_holds_everything_and_reads_as_a_line() -> None:
    result = equivalence(outcomes(160, 40, 1800))
    plain = json.loads(json.dumps(result.to_json()))
    assert plain["verdict"] == "helps"
    assert plain["interval"] == list(result.interval)
    assert {"p", "above_zero", "ci95", "margin", "images", "seeds", "p_lower", "p_upper"} <= set(plain)
    assert str(result).startswith("helps: +6.0 points, 90 % interval [+4.8, +7.1]")
    assert str(result).endswith("against ±2.0, 2000 paired images, 1 paired seeds")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(0), "shape"),
        (torch.zeros(2, 2, 2), "shape"),
        (torch.tensor([0.0, 1.5]), "outside"),
        (torch.tensor([0.0, float("nan")]), "outside"),
    ],
)
def test_bad_differences(values: torch.Tensor, words: str) -> None:
    with pytest.raises(InputError, match=words):
        equivalence(values)


def test_bad_arguments() -> None:
    with pytest.raises(InputTypeError, match="differences must be"):
        equivalence([0.0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="margin is 0"):
        equivalence(torch.zeros(5), 0.0)
    with pytest.raises(InputError, match=r"alpha is 0\.7"):
        equivalence(torch.zeros(5), alpha=0.7)
    with pytest.raises(InputError, match="holds 1 seeds"):
        equivalence_of_seeds([0.1], images=10)
