"""PGD adversarial training on a linear model, whose worst point in the ball is a known corner."""

from __future__ import annotations

import math

import pytest
import torch

from squint._checks import InputError
from squint._random import noise
from squint.baselines import make_rival
from squint.ensemble import Ensemble
from tests.baselines.models import logistic, value
from tests.baselines.tiny import network, setup_of, source, toy_data

NAME = "adversarial-training"


def test_the_loss_is_that_of_the_worst_corner() -> None:
    slope, x = torch.tensor([1.0, -2.0, 0.5]), torch.full((3, 1, 1, 3), 0.5)
    y = torch.tensor([0, 0, 1])
    ens = Ensemble([logistic(slope)], 1)
    for options, eps in (({}, 0.1), ({"eps": "0.25"}, 0.25)):
        rival = make_rival(NAME, {**options, "steps": 9})
        with noise(source()):
            terms = rival.objective(setup_of(NAME, eps=0.1))(ens, x, y, 0)
        reach = eps * float(slope.abs().sum())
        centre = 0.5 * float(slope.sum())
        losses = [math.log1p(math.exp(sign * centre + reach)) for sign in (1, 1, -1)]
        assert value(terms["adversarial_ce"]) == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_crafting_moves_no_batch_statistics_and_restores_the_mode() -> None:
    ens = Ensemble([network()], 1).train()
    counters = [value for key, value in ens.named_buffers() if key.endswith("num_batches_tracked")]
    assert len(counters) == 3
    with noise(source()):
        make_rival(NAME).objective(setup_of(NAME))(ens, *toy_data(), 0)
    assert [int(value) for value in counters] == [1, 1, 1]  # the loss's own pass
    assert all(module.training for module in ens.modules())
    assert all(parameter.grad is None for parameter in ens.parameters())


def test_refusals() -> None:
    with pytest.raises(InputError, match=f"eps is 0; rival {NAME} allowed: above 0"):
        make_rival(NAME).check(setup_of(NAME, eps=0.0))
    make_rival(NAME, {"eps": "2/255"}).check(setup_of(NAME, eps=0.0))
    with pytest.raises(InputError, match=f"rival {NAME}: eps is '2'; allowed: a number in"):
        make_rival(NAME, {"eps": "2"})
