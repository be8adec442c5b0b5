"""RSE: the noise's mean and variance, where it stands, and that every draw has its own."""

from __future__ import annotations

import math

import torch

from squint._random import draw_noise, noise
from squint.baselines import make_rival
from squint.baselines.conversion import Wrapped
from squint.baselines.gaussian import GaussianNoise
from tests.baselines.tiny import source, system, toy_data


def test_the_noise_is_normal_with_its_standard_deviation() -> None:
    n, sigma = 100_000, 0.2
    with noise(source()):
        drawn = GaussianNoise(sigma)(torch.zeros(n, 1))
    # Four standard errors of mean, variance and fourth moment (3 sigma^4, variance 96 sigma^8 / n).
    assert abs(float(drawn.mean())) < 4 * sigma / math.sqrt(n)
    assert abs(float(drawn.var()) / sigma**2 - 1) < 4 * math.sqrt(2 / n)
    assert abs(float(drawn.pow(4).mean()) / sigma**4 - 3) < 4 * math.sqrt(96 / n)


def test_where_the_noise_stands() -> None:
    ens = system(make_rival("rse", {"image_sigma": 0.3, "inner_sigma": 0.05}))
    found = {name: module.sigma for name, module in ens.named_modules() if isinstance(module, GaussianNoise)}
    assert found == {
        "members.0.noise": 0.3,
        "members.0.network.conv2.0.on_input": 0.05,
        "members.0.network.conv3.0.on_input": 0.05,
    }
    assert not any(isinstance(module, Wrapped) and module.on_weight for module in ens.modules())


def test_the_noise_passes_the_gradient_on() -> None:
    x = torch.rand(2, 3, generator=source(), requires_grad=True)
    with noise(source()):
        GaussianNoise(0.5)(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(2, 3))


def test_folded_draws_have_streams_of_their_own() -> None:
    layer, x = GaussianNoise(1.0), torch.zeros(3, 2)
    with draw_noise([11, 12]):
        folded = layer(torch.cat([x, x]))
    for place, seed in enumerate((11, 12)):
        with draw_noise([seed]):
            assert torch.equal(layer(x), folded.chunk(2)[place])
    assert not torch.equal(*folded.chunk(2))


def test_without_noise_the_network_is_what_it_was() -> None:
    quiet, plain = (
        system(make_rival("rse", {"image_sigma": 0, "inner_sigma": 0})),
        system(make_rival("full-precision")),
    )
    x = toy_data(4)[0]
    assert torch.equal(quiet.eval().member_logits(x, 1), plain.eval().member_logits(x, 1))
