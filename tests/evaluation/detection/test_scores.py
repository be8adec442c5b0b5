from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from squint.evaluation.detection.scores import (
    SCORES,
    across_members,
    jensen_shannon,
    maximum_probability,
    soft_vote_disagreement,
    vote_disagreement,
)

LOG2 = math.log(2)


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, 5, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "apart", "draws_apart"),
    [
        ("predictive_information", LOG2, LOG2),
        ("across_members", LOG2, 0.0),
        ("across_draws", 0.0, LOG2),
        ("jensen_shannon", LOG2, 0.0),
        ("vote_disagreement", 0.5, 0.5),
        ("probability_variance", 0.25, 0.25),
        ("entropy", LOG2, LOG2),
        ("maximum_probability", LOG2, LOG2),
    ],
)
def test_closed_forms_of_full_agreement_and_full_disagreement(
    name: str, apart: float, draws_apart: float
) -> None:
    sure = torch.tensor([[60.0, 0.0, 0.0], [0.0, 60.0, 0.0]])
    agreed = sure[0].expand(2, 2, 1, 3)
    by_member = sure[None, :, None].expand(2, 2, 1, 3)
    by_draw = sure[:, None, None].expand(2, 2, 1, 3)
    for outputs, expected in ((agreed, 0.0), (by_member, apart), (by_draw, draws_apart)):
        assert float(SCORES[name](outputs)) == pytest.approx(expected, abs=1e-9)


def test_jensen_shannon_is_the_mean_over_pairs(logits: Tensor) -> None:
    p = logits.softmax(-1).mean(0).numpy()
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(jensenshannon(p[i], p[j], axis=-1) ** 2 for i, j in pairs) / 3
    torch.testing.assert_close(jensen_shannon(logits), torch.as_tensor(expected))
    two = logits[:, :2]
    torch.testing.assert_close(jensen_shannon(two), across_members(two))
    assert (jensen_shannon(logits[:, :1]) == 0).all()


def test_votes_count_units_and_soften_to_themselves(logits: Tensor) -> None:
    votes = logits.argmax(-1).flatten(0, 1)
    expected = [1 - max(column.bincount()).item() / 12 for column in votes.T]
    assert vote_disagreement(logits).tolist() == pytest.approx(expected)
    torch.testing.assert_close(soft_vote_disagreement(1e4 * logits), vote_disagreement(logits))


def test_the_largest_probability_keeps_its_digits() -> None:
    z = torch.tensor([50.0, 0.0], dtype=torch.float64).expand(1, 1, 1, 2)
    assert float(maximum_probability(z)) == pytest.approx(math.exp(-50), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in SCORES if name != "vote_disagreement"])
def test_gradients_agree_with_finite_differences(name: str, logits: Tensor) -> None:
    leaf = logits[:, :, :2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(SCORES[name], (leaf,))


@pytest.mark.parametrize("name", list(SCORES))
def test_scores_look_at_one_example_and_at_no_order(name: str, logits: Tensor) -> None:
    score = SCORES[name]
    whole = score(logits)
    assert whole.dtype == torch.float64
    assert whole.shape == (5,)
    alone = torch.cat([score(logits[:, :, i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(score(logits.flip(0).flip(1).flip(3)), whole)
