"""Draws folded into the batch: each its own noise, replayed exactly whatever shares the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint._random import draw_noise, next_seeds
from squint.quantize import StochasticQuantizer, calibrate, quantize
from squint.quantize.quantizer import GRANULARITIES
from tests.quantize.nets import Residual, VisionTransformer, distinct

SEEDS = [11, 22, 33, 44]


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_draw_depends_on_its_own_seed_only(granularity: str) -> None:
    q = StochasticQuantizer(3, granularity=granularity)
    x = images()
    with draw_noise(SEEDS):
        together = q(x.repeat(4, 1, 1, 1)).chunk(4)
    for seed, y in zip(SEEDS, together, strict=True):
        with draw_noise([seed]):
            assert torch.equal(q(x), y)
    with draw_noise([99, 22, 7, 8]):
        other = q(x.repeat(4, 1, 1, 1)).chunk(4)
    assert torch.equal(other[1], together[1])
    for i in range(4):
        assert all(not torch.equal(together[i], together[j]) for j in range(i))


@pytest.mark.parametrize("weight_width", [0.0, 1.0])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_draws_of_whole_networks_are_those_of_each_draw_alone(granularity: str, weight_width: float) -> None:
    x = images()
    for net in (Residual(), VisionTransformer(), VisionTransformer(batch_first=False)):
        quantized = quantize(net.eval(), granularity=granularity, weight_width=weight_width)
        calibrate(quantized, x)
        with draw_noise(SEEDS):
            together = quantized(x.repeat(4, 1, 1, 1)).chunk(4)
        for seed, y in zip(SEEDS, together, strict=True):
            with draw_noise([seed]):
                torch.testing.assert_close(quantized(x), y, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_noisy_weights_are_not_shared_by_draws() -> None:
    layer = torch.nn.Linear(4, 3, bias=False)
    settings = {"weight_bits": 2, "activation_bits": None}
    net = quantize(layer, input_bits=None, weight_width=1.0, overrides={"*": settings})
    eye = torch.eye(4)
    with draw_noise(SEEDS):
        weights = net(eye.repeat(4, 1)).chunk(4)
    for i, (seed, weight) in enumerate(zip(SEEDS, weights, strict=True)):
        with draw_noise([seed]):
            torch.testing.assert_close(net(eye), weight)
        assert all(not torch.equal(weight, weights[j]) for j in range(i))


def test_a_batch_that_does_not_hold_the_draws_is_refused() -> None:
    with draw_noise(SEEDS), pytest.raises(InputError, match="4 folded draws"):
        StochasticQuantizer(2)(torch.rand(6, 2))


@pytest.mark.parametrize("total", [4, 6, 16])
@pytest.mark.parametrize("granularity", ["element", "channel", "example"])
def test_a_stratified_set_has_one_draw_in_each_stratum(total: int, granularity: str) -> None:
    """A 1-bit quantizer at x reads its noise: of `total` strata the share of ones is x, to one stratum."""
    q = StochasticQuantizer(1, granularity=granularity)
    seeds = next_seeds(torch.Generator().manual_seed(3), total)
    for value in (0.13, 0.5, 0.77):
        x = torch.full((5, 3, 2, 2), value)
        with draw_noise(seeds, strata=range(total), strata_total=total, shared_seed=9):
            y = q(x.repeat(total, 1, 1, 1)).view(total, *x.shape)
        ones = y.sum(0)
        expected = value * total
        assert ((ones > expected - 1 - 1e-3) & (ones < expected + 1 + 1e-3)).all()
        assert distinct(y[0]) == 2 or granularity != "element"


def test_chunks_of_a_stratified_set_replay_it_exactly() -> None:
    q = StochasticQuantizer(2)
    x = images()
    seeds = next_seeds(torch.Generator().manual_seed(3), 6)
    with draw_noise(seeds, strata=range(6), strata_total=6, shared_seed=5):
        whole = q(x.repeat(6, 1, 1, 1)).chunk(6)
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        with draw_noise(seeds[start:stop], strata=range(start, stop), strata_total=6, shared_seed=5):
            part = q(x.repeat(stop - start, 1, 1, 1)).chunk(stop - start)
        for i, y in enumerate(part):
            assert torch.equal(y, whole[start + i])


def test_stratified_draws_are_unbiased_and_vary_less() -> None:
    q = StochasticQuantizer(2)
    x = torch.linspace(0.02, 0.98, 2_000).view(1, 1, 40, 50)
    repeats, total = 60, 8
    stratified, independent = [], []
    for repeat in range(repeats):
        seeds = next_seeds(torch.Generator().manual_seed(repeat), total)
        many = x.expand(total, -1, -1, -1)
        with draw_noise(seeds, strata=range(total), strata_total=total, shared_seed=1_000 + repeat):
            stratified.append(q(many).mean(0))
        with draw_noise(seeds):
            independent.append(q(many).mean(0))
    close, loose = torch.stack(stratified), torch.stack(independent)
    u = 3 * x[0].double()
    variance = (u - u.floor()) * (u.ceil() - u) / 9
    assert ((close.mean(0) - x[0]).abs() <= 5 * (variance / (total * repeats)).sqrt() + 2**-15).all()
    # A mean over 8 strata is off by one stratum at most: variance 1/4 of (step/8)^2 or less.
    assert float(close.var(0).mean()) <= 0.25 / (3 * 8) ** 2 * 1.05
    assert float(loose.var(0).mean()) == pytest.approx(float(variance.mean()) / total, rel=0.1)


def test_each_stratified_draw_alone_is_unbiased() -> None:
    q = StochasticQuantizer(1)
    x = torch.full((1, 20_000), 0.3)
    with draw_noise([1, 2, 3], strata=range(3), strata_total=3, shared_seed=4):
        y = q(x.repeat(3, 1))
    error = 5 * (0.3 * 0.7 / 20_000) ** 0.5
    assert ((y.mean(1) - 0.3).abs() < error).all()
