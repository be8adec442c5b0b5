"""Consistency: divergence and entropy of two draws worked out by hand, and the noise it trains under."""

from __future__ import annotations

import math

import pytest
import torch

from squint._checks import InputError
from squint.baselines import make_rival
from squint.baselines.gaussian import GaussianNoise
from tests.baselines.models import Answers, value
from tests.baselines.tiny import setup_of, system


def test_two_draws() -> None:
    p = torch.tensor([[[[0.8, 0.2]]], [[[0.4, 0.6]]]], dtype=torch.float64)
    terms = make_rival("consistency", {"strength": 2.0, "entropy": 0.25}).objective(setup_of("consistency"))(
        Answers(p.log()), torch.zeros(1, 1), torch.tensor([0]), 0
    )
    # Mean (0.6, 0.4).
    first = 0.6 * math.log(0.6 / 0.8) + 0.4 * math.log(0.4 / 0.2)
    second = 0.6 * math.log(0.6 / 0.4) + 0.4 * math.log(0.4 / 0.6)
    entropy = -0.6 * math.log(0.6) - 0.4 * math.log(0.4)
    assert value(terms["noisy_ce"]) == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert value(terms["disagreement"]) == pytest.approx(2.0 * (first + second) / 2)
    assert value(terms["entropy"]) == pytest.approx(0.25 * entropy)


def test_the_noise_is_on_the_image() -> None:
    ens = system(make_rival("consistency", {"sigma": 0.125}))
    layers = {name: module for name, module in ens.named_modules() if isinstance(module, GaussianNoise)}
    assert {name: layer.sigma for name, layer in layers.items()} == {"members.0.noise": 0.125}


def test_a_single_draw_is_refused() -> None:
    with pytest.raises(InputError, match="training_draws is 1; rival consistency allowed: 2 or more"):
        make_rival("consistency").check(setup_of("consistency", training_draws=1))
