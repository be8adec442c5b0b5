from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from squint._checks import InputError
from squint.evaluation.detection.separation import Set, curve, histograms, resampled, separation


def everything(scores: torch.Tensor) -> Set:
    return Set(scores, torch.ones_like(scores, dtype=torch.bool))


def test_a_hand_made_example() -> None:
    positive = everything(torch.tensor([[3.0], [2.0], [0.5], [3.0]]))
    negative = everything(torch.tensor([[1.0], [2.0], [0.0], [0.0]]))
    found = separation(positive, negative, seed=0)
    assert found is not None
    wins = sum((p > n) + 0.5 * (p == n) for p in (3, 2, 0.5, 3) for n in (1, 2, 0, 0))
    assert found.auroc == pytest.approx(wins / 16)
    assert found.tpr_at_5_fpr == found.tpr_at_1_fpr == 0.5
    assert (found.positives, found.negatives) == (4, 4)


def test_the_bootstrap_agrees_with_scikit_learn_on_repeated_examples() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 12, 80).astype(float)
    truth = random.random(80) < 0.4
    weights = random.integers(0, 4, (6, 80)).astype(float)
    found = resampled(scores, truth, weights)
    for row, weight in zip(found, weights.astype(int), strict=True):
        s, t = scores.repeat(weight), truth.repeat(weight)
        assert row[0] == pytest.approx(roc_auc_score(t, s))
        assert row[1] == pytest.approx(average_precision_score(t, s))
        for value, at in zip(row[2:], (0.05, 0.01), strict=True):
            rates = [(s[t] > c).mean() for c in [*np.unique(s), -1] if (s[~t] > c).mean() <= at]
            assert value == pytest.approx(max(rates))


def test_intervals_cover_the_area_of_two_normal_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = norm.cdf(1 / math.sqrt(2))
    covered = 0
    for seed in range(100):
        positive = everything(1 + torch.randn(60, 1, generator=generator))
        found = separation(positive, everything(torch.randn(60, 1, generator=generator)), seed=seed)
        assert found is not None
        covered += found.auroc_ci95[0] <= truth <= found.auroc_ci95[1]
    # 0.95 less four standard errors of 100 trials.
    assert covered >= 86


def test_deployments_of_one_image_are_resampled_together() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(40, 1, generator=generator)
    once = separation(everything(base + 1), everything(base.flip(0)), seed=0)
    often = separation(everything((base + 1).expand(-1, 9)), everything(base.flip(0).expand(-1, 9)), seed=0)
    assert once is not None
    assert often is not None
    assert often.auroc == pytest.approx(once.auroc)
    assert often.auroc_ci95 == pytest.approx(once.auroc_ci95)


def test_an_empty_set_has_no_separation() -> None:
    scores = torch.rand(5, 2)
    nothing = Set(scores, torch.zeros(5, 2, dtype=torch.bool))
    assert separation(nothing, everything(scores), seed=0) is None
    assert separation(everything(scores), nothing, seed=0) is None
    assert curve(nothing, everything(scores)) is None


def test_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="3 and 2 images"):
        separation(everything(torch.rand(3, 1)), everything(torch.rand(2, 1)), seed=0)


def test_curves_rise_and_histograms_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(2)
    positive = everything(1 + torch.randn(50, 2, generator=generator))
    negative = everything(torch.randn(50, 2, generator=generator))
    drawn = curve(positive, negative)
    assert drawn is not None
    assert drawn["tpr"] == sorted(drawn["tpr"])
    assert drawn["tpr"][-1] == 1
    held = histograms({"clean": negative, "attacked": positive}, bins=10)
    assert len(held["edges"]) == 11
    assert all(sum(shares) == pytest.approx(1) for shares in held["shares"].values())
    assert set(held["shares"]) == {"clean", "attacked"}
