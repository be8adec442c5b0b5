"""The quantizer's backward pass: surrogates, masks, kinks, learnt ranges and widths."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from squint._random import noise
from squint.quantize import StochasticQuantizer, set_gradient, set_rounding
from squint.quantize import functional as Q
from squint.quantize.quantizer import WIDTH_FLOOR

DTYPES = [torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(q: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    x = x.detach().clone().requires_grad_()
    with noise(generator(seed)):
        (found,) = torch.autograd.grad(q(x).sum(), x)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("surrogate", Q.GRADIENTS)
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_pixel_value_has_gradient_exactly_one(
    bits: int, surrogate: str, learns: bool, dtype: torch.dtype
) -> None:
    pixels = torch.arange(256, dtype=dtype) / 255
    q = StochasticQuantizer(bits, gradient=surrogate, learn_range=learns)
    assert torch.equal(gradient(q, pixels), torch.ones_like(pixels))


def test_every_pixel_value_has_gradient_exactly_one_in_half_precision() -> None:
    pixels = (torch.arange(256) / 255).bfloat16()
    for bits in range(1, 9):
        assert torch.equal(gradient(StochasticQuantizer(bits), pixels), torch.ones_like(pixels))


@pytest.mark.parametrize("family", Q.NOISES)
@pytest.mark.parametrize("width", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("learn_width", [True, False])
def test_expected_is_the_derivative_of_the_mean(family: str, width: float, learn_width: bool) -> None:
    q = StochasticQuantizer(3, -1.0, 0.75, noise=family, width=width, learn_width=learn_width)
    x = torch.linspace(-1.6, 1.3, 400, dtype=torch.float64)
    exact = Q.expected_gradients(x, float(q.low), float(q.step), width, 8, family)["x"]
    torch.testing.assert_close(gradient(q, x), exact, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradient(q, x.float()), exact.float(), atol=1e-4, rtol=1e-4)


def test_straight_through_has_its_own_closed_mask() -> None:
    q = StochasticQuantizer(4, -1.0, 1.0, gradient="straight_through", noise="gaussian", width=2.0)
    x = torch.tensor([-1.01, -1.0, 0.123, 1.0, 1.01])
    assert gradient(q, x).tolist() == [0, 1, 1, 1, 0]


def test_identity_passes_everything() -> None:
    q = StochasticQuantizer(1, gradient="identity", learn_range=True)
    assert gradient(q, torch.linspace(-5, 5, 11)).tolist() == [1] * 11


def test_expected_at_width_zero_means_straight_through() -> None:
    x = torch.linspace(-0.5, 1.5, 41)
    twins = [StochasticQuantizer(2, width=0.0, gradient=g) for g in ("expected", "straight_through")]
    assert torch.equal(*(gradient(q, x) for q in twins))


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_nearest_leaves_the_backward_pass_as_configured(width: float) -> None:
    q = StochasticQuantizer(2, width=width)
    x = torch.linspace(-0.5, 1.5, 101)
    sampled = gradient(q, x)
    set_rounding(q, "nearest")
    assert torch.equal(gradient(q, x), sampled)


def test_uniform_noise_of_width_two_reaches_past_the_ends_with_half_slope() -> None:
    q = StochasticQuantizer(2, 0.0, 3.0, width=2.0)
    x = torch.tensor([-0.6, -0.4, 0.4, 0.6, 1.5, 2.6, 3.4, 3.6])
    assert gradient(q, x).tolist() == [0, 0.5, 0.5, 1, 1, 0.5, 0.5, 0]


def test_gradients_can_be_switched_between_forward_passes() -> None:
    q = StochasticQuantizer(2)
    x = torch.tensor([-1.0], requires_grad=True)
    y = q(x)
    set_gradient(q, "identity")
    (first,) = torch.autograd.grad(y.sum(), x)
    assert float(first) == 0
    assert float(gradient(q, x)) == 1


@pytest.mark.parametrize("family", Q.NOISES)
@pytest.mark.parametrize("width", [0.6, 1.0, 2.0])
def test_sampled_parameter_gradients_average_to_the_identities(family: str, width: float) -> None:
    """Monte Carlo through the module: the low end is tied to the step, the width to both."""
    q = StochasticQuantizer(3, -0.6, 0.8, noise=family, width=width, learn_range=True, learn_width=True)
    assert isinstance(q.step, nn.Parameter)
    assert isinstance(q.width, nn.Parameter)
    x = torch.linspace(-0.8, 1.0, 8)
    rounds, per_round = 60, 200
    samples = []
    for seed in range(rounds):
        with noise(generator(seed)):
            mean = q(x.expand(per_round, -1)).mean(0).sum()
        samples.append(torch.stack(torch.autograd.grad(mean, [q.step, q.width])))
    found = torch.stack(samples).double()
    step, offset = float(q.step.detach()), float(q.offset)
    exact = Q.expected_gradients(x.double(), offset * step, step, width, 8, family)
    expected = torch.stack([(exact["step_tied"] + offset * exact["low"]).sum(), exact["w"].sum() * step])
    error = found.std(0) / math.sqrt(rounds)
    # The lattice of the noise biases each of 8 elements by at most 2^-17 per threshold within reach.
    assert ((found.mean(0) - expected).abs() <= 5 * error + 8 * 8 * 2**-17 * 8).all()


def test_straight_through_learns_the_range_as_lsq_does() -> None:
    """Esser et al. 2020, equations 3 and 5: round(v) - v inside, the clipping level outside, times g."""
    q = StochasticQuantizer(3, 0.0, 0.7, width=0.0, gradient="straight_through", learn_range=True)
    assert isinstance(q.step, nn.Parameter)
    x = torch.tensor([[-0.3, 0.04, 0.13, 0.36, 0.7, 0.9], [0.0, 0.21, 0.5, 0.66, 0.81, -2.0]])
    grad = torch.linspace(-1, 2, 12).view(2, 6)
    (found,) = torch.autograd.grad(q(x), q.step, grad)
    v = x / q.step.detach()
    residual = torch.where(v < 0, 0.0, torch.where(v > 7 + 1e-4, 7.0, v.round() - v))
    # N = 6 elements of one example, Q_P = 7.
    expected = (grad * residual).sum() / math.sqrt(6 * 7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_per_channel_steps_get_their_own_gradients() -> None:
    steps = torch.tensor([0.1, 0.25])
    x = torch.randn(3, 2, 40, generator=generator(5))
    both = StochasticQuantizer(3, noise="logistic", learn_range=True)
    both.set_grid(steps.view(2, 1), -3, 7)
    assert isinstance(both.step, nn.Parameter)
    with noise(generator(1)):
        (found,) = torch.autograd.grad(both(x).sum(), both.step)
    assert found.shape == (2, 1)
    many = StochasticQuantizer(3, noise="logistic", learn_range=True)
    many.set_grid(steps.view(2, 1).expand(3, 2, 40).clone(), -3, 7)
    assert isinstance(many.step, nn.Parameter)
    with noise(generator(1)):
        (each,) = torch.autograd.grad(many(x).sum(), many.step)
    torch.testing.assert_close(found, each.sum((0, 2)).view(2, 1), atol=1e-4, rtol=1e-4)


def test_a_learned_width_stays_above_its_floor_and_can_come_back() -> None:
    q = StochasticQuantizer(2, width=0.3, learn_width=True)
    assert isinstance(q.width, nn.Parameter)
    floored = StochasticQuantizer(2, width=WIDTH_FLOOR)
    with torch.no_grad():
        q.width.fill_(-3.0)
    x = torch.linspace(0, 1, 500)
    with noise(generator()):
        below = q(x)
    with noise(generator()):
        assert torch.equal(below, floored(x))
    assert q.stochastic
    optimizer = torch.optim.SGD([q.width], lr=1.0)
    for sign in (1.0, -1.0):
        q.width.grad = None
        with noise(generator(1)):
            variance = q(torch.full((400,), 0.5)).var()
        # More noise at a threshold is more variance: +variance pushes the width down, -variance lifts it.
        torch.autograd.backward(sign * variance)
        assert q.width.grad is not None
        before = float(q.width.detach())
        optimizer.step()
        assert float(q.width.detach()) == before if sign > 0 else float(q.width.detach()) >= before


def test_a_step_pushed_below_zero_is_held_positive_and_can_come_back() -> None:
    q = StochasticQuantizer(2, width=0.0, learn_range=True)
    assert isinstance(q.step, nn.Parameter)
    with torch.no_grad():
        q.step.fill_(-1.0)
    x = torch.tensor([0.5])
    y = q(x)
    assert bool(y.isfinite().all())
    torch.autograd.backward((x - y).square().sum())
    assert q.step.grad is not None
    assert float(q.step.grad) < 0


def test_double_backward_through_a_network_of_quantizers() -> None:
    net = nn.Sequential(
        StochasticQuantizer(3, noise="gaussian"),
        nn.Linear(4, 3),
        nn.Tanh(),
        StochasticQuantizer(3, -1.0, 1.0, noise="logistic", learn_range=True, learn_width=True),
        nn.Linear(3, 1),
    ).double()
    x = torch.rand(5, 4, generator=generator(), dtype=torch.float64).requires_grad_()
    with noise(generator(2)):
        y = net(x).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    torch.autograd.backward(first.square().sum())
    for name, parameter in net.named_parameters():
        if not name.endswith("4.bias"):
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert float(parameter.grad.abs().sum()) > 0 or name == "4.bias", name


def test_no_parameter_gradient_is_computed_that_nobody_asked_for() -> None:
    q = StochasticQuantizer(2, learn_range=True, learn_width=True)
    for parameter in q.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(3, 4, generator=generator()).requires_grad_()
    torch.autograd.backward(q(x).sum())
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in q.parameters())
