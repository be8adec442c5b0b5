"""GAL's alignment on gradients and on linear members whose gradients are known."""

from __future__ import annotations

import math

import pytest
import torch

from squint.baselines import make_rival
from squint.baselines.gal import gradient_alignment
from squint.ensemble import Ensemble
from tests.baselines.models import logistic, value
from tests.baselines.tiny import setup_of


def test_two_orthogonal_gradients_have_alignment_zero() -> None:
    gradients = torch.tensor([[[3.0, 0.0]], [[0.0, 2.0]]])
    assert float(gradient_alignment(gradients)) == pytest.approx(0, abs=1e-6)


def test_pairs_are_summed_inside_the_logarithm() -> None:
    # Cosines 1, 0 and 0 for members 1 and 2, 1 and 3, 2 and 3; then -1 where the second turns round.
    gradients = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 5.0]]])
    assert float(gradient_alignment(gradients)) == pytest.approx(math.log(math.e + 2))
    gradients[1] *= -1
    assert float(gradient_alignment(gradients)) == pytest.approx(math.log(1 / math.e + 2))


def test_tiny_gradients_keep_their_direction() -> None:
    gradients = 1e-20 * torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    assert float(gradient_alignment(gradients)) == pytest.approx(1.0)


def test_linear_members() -> None:
    """The gradient of a logistic member points along its weights: cosine 0.6 whatever the image."""
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])
    ens = Ensemble([logistic(first), logistic(second)], 1)
    x, y = torch.tensor([0.2, 0.7]).view(1, 1, 1, 2), torch.tensor([0])
    terms = make_rival("gal").objective(setup_of("gal"))(ens, x, y, 0)
    assert value(terms["alignment"]) == pytest.approx(0.5 * 0.6)
    losses = [math.log1p(math.exp(0.2)), math.log1p(math.exp(0.6 + 2.8))]
    assert value(terms["member_ce"]) == pytest.approx(sum(losses) / 2)


def test_training_turns_the_gradients_apart() -> None:
    ens = Ensemble([logistic(torch.tensor([1.0, 0.2])), logistic(torch.tensor([0.2, 1.0]))], 1)
    x, y = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2), torch.tensor([0])
    objective = make_rival("gal", {"strength": 1.0}).objective(setup_of("gal"))

    def alignment() -> torch.Tensor:
        return objective(ens, x, y, 0)["alignment"]

    before = alignment()
    torch.autograd.backward(before)
    with torch.no_grad():
        for parameter in ens.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)
    assert value(alignment()) < value(before)
