"""The quantizer as a module: value, variance, modes, grids, granularity."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from squint._checks import LEAST_WIDTH
from squint._random import noise
from squint.quantize import StochasticQuantizer, set_rounding
from squint.quantize import functional as Q
from squint.quantize.quantizer import GRANULARITIES
from tests.quantize.nets import distinct

PIXELS = torch.arange(256) / 255


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(quantizer: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    with noise(generator(seed)):
        y: Tensor = quantizer(x)
    return y


def closed_form(q: StochasticQuantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[y] and Var[y] of DESIGN section 2, in float64."""
    step, low, width = float(q.step), float(q.low), float(q.width)
    u = (x.double() - low) / step
    mean = low + step * Q.expected_level(u, width, q.levels, q.noise)
    return mean, step**2 * Q.level_variance(u, width, q.levels, q.noise)


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("family", Q.NOISES)
@pytest.mark.parametrize(
    ("bits", "low", "high"), [(1, 0.0, 1.0), (2, -0.5, 1.5), (4, 0.0, 3.0), (8, -1.0, 1.0)]
)
def test_samples_have_the_closed_form_mean_and_variance(
    bits: int, low: float, high: float, family: str, width: float
) -> None:
    q = StochasticQuantizer(bits, low, high, noise=family, width=width)
    count, reach = 20_000, high - low
    x = torch.linspace(low - 0.2 * reach, high + 0.2 * reach, 8)
    y = run(q, x.expand(count, -1)).double()
    mean, variance = closed_form(q, x)
    # Five standard errors, and the lattice of the noise (2^-17 or 2^-14 per threshold that it reaches).
    lattice = float(q.step) * (3 * width + 2) * (2**-14 if bits > 6 else 2**-17) + 1e-6
    assert ((y.mean(0) - mean).abs() <= 5 * (variance / count).sqrt() + lattice).all()
    fourth = (y - y.mean(0)).pow(4).mean(0)
    error = 5 * ((fourth - variance.square()).clamp_min(0) / count).sqrt() + float(q.step) ** 2 * 1e-3
    assert ((y.var(0) - variance).abs() <= error).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_stochastic_rounding_is_unbiased_on_the_closed_range(bits: int) -> None:
    q = StochasticQuantizer(bits)
    x = torch.cat([torch.linspace(0, 1, 21), PIXELS[::17]])
    count = 4_000
    y = run(q, x.expand(count, -1)).double()
    u = x.double() * (q.levels - 1)
    variance = ((u - u.floor()) * (u.ceil() - u)) / (q.levels - 1) ** 2
    assert ((y.mean(0) - x).abs() <= 5 * (variance / count).sqrt() + 2**-14 / (q.levels - 1) + 1e-6).all()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grid_points_are_fixed_points(bits: int, dtype: torch.dtype) -> None:
    points = torch.arange(2**bits, dtype=dtype) / (2**bits - 1)
    y = run(StochasticQuantizer(bits), points.expand(2_000, -1))
    torch.testing.assert_close(y, points.expand(2_000, -1), atol=2e-7, rtol=0)


@pytest.mark.parametrize("family", Q.NOISES)
def test_width_zero_is_rounding_to_fixed_bins_and_draws_nothing(family: str) -> None:
    q = StochasticQuantizer(2, width=0.0, noise=family)
    assert not q.stochastic
    source = generator()
    before = source.get_state()
    with noise(source):
        y = q(torch.tensor([-5.0, 0.0, 0.16, 0.17, 0.49, 0.51, 0.84, 1.0, 7.0]))
    assert torch.equal(source.get_state(), before)
    torch.testing.assert_close(y, torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3]) / 3)


def test_a_value_on_a_threshold_does_not_exceed_it() -> None:
    q = StochasticQuantizer(2, 0.0, 3.0, width=0.0)
    assert q(torch.tensor([0.5, 1.5, 2.5])).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("family", Q.NOISES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_granularity_says_what_shares_a_draw(granularity: str, family: str) -> None:
    q = StochasticQuantizer(4, granularity=granularity, noise=family)
    x = torch.full((6, 5, 7, 3), 0.4567)
    y = run(q, x)
    shared = {"element": (), "channel": (2, 3), "example": (1, 2, 3), "tensor": (0, 1, 2, 3)}[granularity]
    if shared:
        assert torch.equal(y.amax(shared), y.amin(shared))
    most = max(distinct(run(q, x, seed)) for seed in range(40))
    assert (most > 1) == (granularity != "tensor")
    means = torch.stack([run(q, x, seed)[0, 0, 0, 0] for seed in range(60)])
    assert distinct(means) > 1


def test_shared_noise_moves_the_bins_together() -> None:
    """One draw for all: y is then a deterministic quantizer with an offset, so order is kept."""
    q = StochasticQuantizer(3, granularity="example")
    x = torch.linspace(0, 1, 300).expand(4, -1)
    y = run(q, x)
    assert (y.diff(dim=1) >= 0).all()
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("training", [True, False])
def test_rounding_does_not_follow_train_or_eval(training: bool) -> None:
    q = StochasticQuantizer(3).train(training)
    x = torch.full((100,), 0.4321)
    assert distinct(run(q, x)) == 2
    set_rounding(q, "nearest")
    q.train(not training)
    assert not q.stochastic
    assert distinct(run(q, x)) == 1
    torch.testing.assert_close(q(x[:1]), torch.tensor([3 / 7]))


def test_same_seed_same_result_and_torchs_own_stream_is_untouched() -> None:
    q = StochasticQuantizer(2)
    x = torch.rand(4, 3, 5, 5, generator=generator(1))
    before = torch.get_rng_state()
    assert torch.equal(run(q, x, 3), run(q, x, 3))
    assert not torch.equal(run(q, x, 3), run(q, x, 4))
    q(x)
    torch.autograd.backward(StochasticQuantizer(3, learn_range=True, learn_width=True)(x).sum())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("lowest", "levels"), [(-8.0, 16), (-7.0, 15), (0.0, 16), (-0.5, 2)])
@pytest.mark.parametrize("scale", [0.1, 0.37, 2.9])
def test_grids_hold_zero_and_keep_it_when_the_step_moves(lowest: float, levels: int, scale: float) -> None:
    q = StochasticQuantizer(4, learn_range=True)
    q.set_grid(torch.tensor(scale), lowest, levels)
    with torch.no_grad():
        q.step.mul_(1.618)
    y = run(q, torch.linspace(-80, 80, 8001)).detach()
    assert distinct(y) == levels
    assert (0.0 in y) == (lowest != -0.5)
    assert distinct(run(q, torch.zeros(500))) == (2 if lowest == -0.5 else 1)
    assert float(y.min()) == pytest.approx(float(q.low), rel=1e-6)
    assert float(y.max()) == pytest.approx(float(q.high), rel=1e-6)


@pytest.mark.parametrize("family", Q.NOISES)
@pytest.mark.parametrize("surrogate", Q.GRADIENTS)
def test_memory_layout_changes_nothing(family: str, surrogate: str) -> None:
    q = StochasticQuantizer(3, noise=family, gradient=surrogate, width=1.5)
    plain = torch.rand(4, 6, 9, 5, generator=generator())
    results = []
    for x in (
        plain,
        plain.to(memory_format=torch.channels_last),
        plain.transpose(1, 3).clone().transpose(1, 3),
    ):
        leaf = x.clone().requires_grad_()
        y = run(q, leaf)
        results.append((y, torch.autograd.grad(y.sum(), leaf)[0]))
    for y, gradient in results[1:]:
        assert torch.equal(y, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_large_tensors_are_treated_as_small_ones() -> None:
    """Beyond 2^16 elements the noise is added piece by piece."""
    x = torch.rand(3, 70_000, generator=generator())
    for family in Q.NOISES:
        q = StochasticQuantizer(4, noise=family, width=1.3)
        k_first = run(q, x)[0, :1000]
        assert torch.equal(k_first, run(q, x[:1, :1000])[0])
        leaf = x.clone().requires_grad_()
        (whole,) = torch.autograd.grad(run(q, leaf).sum(), leaf)
        leaf = x[2, -500:].clone().requires_grad_()
        (part,) = torch.autograd.grad(run(q, leaf).sum(), leaf)
        torch.testing.assert_close(whole[2, -500:], part)


def test_one_step_per_channel_is_one_quantizer_per_channel() -> None:
    steps = torch.tensor([0.1, 0.2, 0.4])
    many = StochasticQuantizer(3, width=0.0)
    many.set_grid(steps.view(3, 1, 1), -4, 8)
    x = torch.randn(2, 3, 5, 5, generator=generator())
    y = many(x)
    for channel, step in enumerate(steps):
        one = StochasticQuantizer(3, width=0.0)
        one.set_grid(step, -4, 8)
        assert torch.equal(y[:, channel], one(x[:, channel]))


@given(
    shape=st.lists(st.integers(0, 4), max_size=5),
    bits=st.integers(1, 8),
    low=st.floats(-10, 10, width=32),
    reach=st.floats(0.0625, 20, width=32),
    width=st.just(0.0) | st.floats(LEAST_WIDTH, 4, width=32),
    family=st.sampled_from(Q.NOISES),
    granularity=st.sampled_from(GRANULARITIES),
    gradient=st.sampled_from(Q.GRADIENTS),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_range_stays_on_its_grid(
    shape: list[int],
    bits: int,
    low: float,
    reach: float,
    width: float,
    family: str,
    granularity: str,
    gradient: str,
    seed: int,
) -> None:
    q = StochasticQuantizer(
        bits,
        low,
        low + reach,
        noise=family,
        width=width,
        granularity=granularity,
        gradient=gradient,
        learn_range=True,
    )
    x = (low + reach * (1.6 * torch.rand(shape, generator=generator(seed)) - 0.3)).requires_grad_()
    y = run(q, x, seed)
    assert y.shape == x.shape
    slack = 1e-5 * (abs(low) + reach)
    assert bool((y >= low - slack).all())
    assert bool((y <= low + reach + slack).all())
    level = (y.double() - float(q.low)) / float(q.step.detach())
    assert bool(
        ((level - level.round()).abs() <= 1e-5 * (1 + (abs(low) + reach) / float(q.step.detach()))).all()
    )
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    assert q.step.grad is not None
    assert bool(x.grad.isfinite().all())
    assert math.isfinite(float(q.step.grad))


@pytest.mark.parametrize("family", Q.NOISES)
def test_the_least_noise_has_finite_gradients(family: str) -> None:
    q = StochasticQuantizer(3, 0.0, 1.0, noise=family, width=LEAST_WIDTH, learn_range=True)
    # Thresholds lie half way between levels: the slope there is as steep as the noise is narrow.
    x = torch.linspace(0, 1, 15).requires_grad_()
    torch.autograd.backward(run(q, x).sum())
    assert x.grad is not None
    assert q.step.grad is not None
    assert bool(x.grad.isfinite().all())
    assert math.isfinite(float(q.step.grad))
