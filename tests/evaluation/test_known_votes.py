"""An attacker who knows the noise of an ensemble that votes: the vote is scored, and it is what must flip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from squint import Ensemble
from squint.baselines import VotingEnsemble
from squint.evaluation.budgets import tiny
from squint.evaluation.scoring_rules import FixedDraws, known_randomness

EPS = 0.05
FEATURES = 16


def linear_member(margin: float) -> nn.Module:
    """Return logits ±m/2 with m = Σ(x − ½) + margin."""
    layer = nn.Linear(FEATURES, 2)
    weight = torch.full((FEATURES,), 0.5)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight, weight]))
        bias = (margin - 0.5 * FEATURES) / 2
        layer.bias.copy_(torch.tensor([-bias, bias]))
    return nn.Sequential(nn.Flatten(), layer)


REACH = EPS * FEATURES
MARGINS = (REACH / 2, REACH / 2, 30.0)
"""Two members within reach, and one so sure that no mean probability gives way."""


class Foreign:
    """The same vote by someone's own class."""

    def __init__(self, inner: VotingEnsemble) -> None:
        self.inner = inner

    def member_logits(self, x: Tensor, draws: int = 1, **options: Any) -> Tensor:
        return self.inner.member_logits(x, draws, **options)

    def pool_members(self, probabilities: Tensor) -> Tensor:
        return self.inner.pool_members(probabilities)


def images(n: int = 3) -> tuple[Tensor, Tensor]:
    return torch.full((n, 1, 4, 4), 0.5), torch.ones(n, dtype=torch.int64)


def test_fixed_draws_are_pooled_as_the_model_deploys() -> None:
    x, _ = images()
    voters = VotingEnsemble([linear_member(m) for m in MARGINS], draws=2).eval()
    lowered = x - EPS
    for model in (voters, Foreign(voters)):
        fixed = FixedDraws(model, 2, seed=3)
        assert fixed(x).argmax(1).tolist() == [1, 1, 1]
        assert fixed(lowered).argmax(1).tolist() == [0, 0, 0]
        torch.testing.assert_close(fixed(lowered).float(), voters(lowered))
    mean = Ensemble(list(voters.members), draws=2).eval()
    assert FixedDraws(mean, 2, seed=3)(lowered).argmax(1).tolist() == [1, 1, 1]


def test_known_randomness_breaks_a_vote_that_a_mean_would_keep() -> None:
    x, y = images()
    voters = VotingEnsemble([linear_member(m) for m in MARGINS], draws=2).eval()
    mean = Ensemble(list(voters.members), draws=2).eval()
    for model, broken in ((voters, True), (Foreign(voters), True), (mean, False)):
        found = known_randomness(model, x, y, EPS, tiny(steps=10), draws=2, seed=0, system="s", batch=0)
        assert found is not None
        assert found.clean_wrong.tolist() == [False] * 3
        assert found.wrong.tolist() == [broken] * 3
