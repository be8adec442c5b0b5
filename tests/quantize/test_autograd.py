"""`StochasticRound` over all 2^16 values of its noise: expectations are sums, not samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from squint.quantize import functional as Q
from squint.quantize.autograd import LowerBound, Rounding, StochasticRound, noise_values

ALL = torch.arange(-(2**15), 2**15, dtype=torch.int16)
EIGHTH = ALL[4::8]
"""An eighth of the noise, evenly spaced: cells of 2^-13."""
WIDTHS = (0.25, 1.0, 1.5, 5.0)
DOUBLE = torch.float64


def apply(
    x: Tensor, low: Tensor, step: Tensor, width: Tensor, k: Tensor | None, rounding: Rounding
) -> Tensor:
    y: Tensor = StochasticRound.apply(x, low, step, width, k, rounding)  # type: ignore[no-untyped-call]
    return y


def scalar(value: float, *, learns: bool = False, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=learns)


def resolution(levels: int, width: float) -> float:
    """Return how far a mean over the lattice of noise may lie from the integral, in levels.

    A threshold's probability is off by at most half a cell: 2^-17, or 2^-14 on fine grids.
    """
    reached = min(levels - 1, 2 * int(3 * width) + 3)
    return reached * (2**-14 if levels > 64 else 2**-17) * 1.01


@pytest.mark.parametrize("noise", Q.NOISES)
@pytest.mark.parametrize("levels", [4, 256])
def test_noise_is_symmetric_inside_its_support_and_of_variance_one_twelfth(noise: str, levels: int) -> None:
    n = noise_values(ALL, noise, levels, DOUBLE)
    assert float(n.mean()) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(n, -n.flip(0), atol=1e-12, rtol=0)
    assert float(n.square().mean()) == pytest.approx(1 / 12, abs=2e-5)
    if noise == "uniform":
        assert float(n.abs().max()) < 0.5


@pytest.mark.parametrize("width", [0.0, *WIDTHS])
@pytest.mark.parametrize("noise", Q.NOISES)
@pytest.mark.parametrize("known", [True, False])
def test_forward_counts_the_thresholds_that_x_plus_noise_exceeds(
    noise: str, width: float, known: bool
) -> None:
    low, step, levels = -0.5, 0.25, 7
    x = torch.linspace(-1, 1.6, 57, dtype=DOUBLE)[:, None] + 1e-4
    k = ALL[::97]
    n = noise_values(k, noise, levels, DOUBLE)
    thresholds = low + step * (torch.arange(1, levels, dtype=DOUBLE) - 0.5)
    y = low + step * ((x + step * width * n)[..., None] > thresholds).sum(-1).to(DOUBLE)
    rounding = Rounding(levels, noise, "expected", width if known else None)
    found = apply(x.expand(-1, len(k)), scalar(low), scalar(step), scalar(width), k, rounding)
    torch.testing.assert_close(found, y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("noise", Q.NOISES)
@pytest.mark.parametrize("levels", [2, 4, 15, 256])
def test_mean_and_variance_over_all_noise_are_the_closed_forms(noise: str, levels: int, width: float) -> None:
    u = torch.tensor([-1.4, 0.0, 0.37, 0.5, levels - 1.2, levels - 1], dtype=DOUBLE)
    level = apply(
        u[:, None].expand(-1, len(ALL)),
        scalar(0),
        scalar(1),
        scalar(width),
        ALL,
        Rounding(levels, noise, "expected", width),
    )
    off = resolution(levels, width)
    torch.testing.assert_close(level.mean(1), Q.expected_level(u, width, levels, noise), atol=off, rtol=0)
    # Var = E[(K - c)^2] - (E[K] - c)^2 with |K - c| within the reach of the noise around c.
    spread = 2 * (2 * (3 * width + 1)) * off + off
    found = level.var(1, correction=0)
    torch.testing.assert_close(found, Q.level_variance(u, width, levels, noise), atol=spread, rtol=0)


@pytest.mark.parametrize("from_zero", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_grid_points_never_move_in_float32(bits: int, from_zero: bool) -> None:
    levels = 2**bits
    step = torch.tensor(1 / (levels - 1))
    points = torch.arange(levels) / (levels - 1)
    extremes = torch.tensor([-(2**15), -1, 0, 2**15 - 1], dtype=torch.int16)
    y = apply(
        points[:, None].expand(-1, 4),
        torch.tensor(0.0),
        step,
        torch.tensor(1.0),
        extremes,
        Rounding(levels, "uniform", "expected", 1.0, from_zero=from_zero),
    )
    torch.testing.assert_close((y / step).round(), torch.arange(levels)[:, None].expand(-1, 4) * 1.0)
    torch.testing.assert_close(y, points[:, None].expand(-1, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("noise", Q.NOISES)
def test_parameter_gradients_average_to_the_identities(noise: str, width: float, tied: bool) -> None:
    levels = 6
    for at in (-0.9, 0.3, 2.5, 4.2):
        low_value, step_value = -0.4, 0.2
        position = low_value + step_value * (at + 0.0123)
        low, step, factor = (scalar(v, learns=True) for v in (low_value, step_value, width))
        x = scalar(position, learns=True)
        many = x.expand(len(EIGHTH))
        rounding = Rounding(levels, noise, "expected", None if tied else width)
        torch.autograd.backward(apply(many, low, step, factor, EIGHTH, rounding).mean())
        exact = Q.expected_gradients(x.detach()[None], low_value, step_value, width, levels, noise)
        off = 8 * resolution(levels, width) * (1 + at * at)
        got = {"x": x.grad, "low": low.grad, "step_tied": step.grad}
        for name, gradient in got.items():
            assert gradient is not None
            assert float(gradient) == pytest.approx(float(exact[name]), abs=off), (name, at)
        assert factor.grad is not None
        # y depends on the width in steps through w = step * width.
        assert float(factor.grad) == pytest.approx(float(exact["w"]) * step_value, abs=off), at


def test_a_low_end_tied_to_the_step_adds_its_share() -> None:
    step = scalar(0.2, learns=True)
    low = -2 * step
    x = scalar(0.13)
    rounding = Rounding(4, "uniform", "expected", 1.5)
    torch.autograd.backward(apply(x.expand(len(EIGHTH)), low, step, scalar(1.5), EIGHTH, rounding).mean())
    exact = Q.expected_gradients(x[None], -0.4, 0.2, 1.5, 4)
    assert step.grad is not None
    expected = float(exact["step_tied"] - 2 * exact["low"])
    assert float(step.grad) == pytest.approx(expected, abs=24 * resolution(4, 1.5))


def test_at_uniform_width_one_the_mean_does_not_depend_on_the_step() -> None:
    u = torch.linspace(0.1, 6.9, 29, dtype=DOUBLE)
    exact = Q.expected_gradients(u * 0.3, 0.0, 0.3, 1.0, 8)
    torch.testing.assert_close(exact["step_tied"], torch.zeros_like(u), atol=1e-12, rtol=0)
    torch.testing.assert_close(exact["step"], -exact["w"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("noise", ["logistic", "gaussian"])
@pytest.mark.parametrize("gradient", ["expected"])
def test_double_backward_is_the_derivative_of_the_surrogate(noise: str, gradient: str) -> None:
    x = torch.linspace(-0.7, 2.4, 23, dtype=DOUBLE, requires_grad=True)
    low, step, width, levels, h = -0.2, 0.3, 0.8, 7, 1e-5
    rounding = Rounding(levels, noise, gradient, width)
    y = apply(x, scalar(low), scalar(step), scalar(width), ALL[::2850], rounding)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)

    def slope(at: Tensor) -> Tensor:
        return Q.expected_gradients(at, low, step, width, levels, noise)["x"]

    torch.testing.assert_close(first.detach(), slope(x.detach()), atol=1e-9, rtol=0)
    reference = (slope(x.detach() + h) - slope(x.detach() - h)) / (2 * h)
    torch.testing.assert_close(second, reference, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("noise", ["logistic", "gaussian"])
def test_mixed_second_derivatives_average_to_those_of_the_mean(noise: str) -> None:
    low_value, step_value, width, levels, h = -0.2, 0.3, 0.8, 7, 1e-5
    x = scalar(0.71, learns=True)
    step = scalar(step_value, learns=True)
    factor = scalar(width, learns=True)
    rounding = Rounding(levels, noise, "expected", None)
    y = apply(x.expand(len(EIGHTH)), scalar(low_value), step, factor, EIGHTH, rounding).mean()
    first = torch.autograd.grad(y, [x, step, factor], create_graph=True)
    at = x.detach()[None]

    def mean(name: str, x: Tensor, step: float = step_value, width: float = width) -> float:
        return float(Q.expected_gradients(x, low_value, step, width, levels, noise)[name])

    by_x_step = (mean("x", at, step_value + h) - mean("x", at, step_value - h)) / (2 * h)
    by_x_width = (mean("x", at, width=width + h) - mean("x", at, width=width - h)) / (2 * h)
    for gradient, inputs, expected in (
        (first[0], step, by_x_step),
        (first[0], factor, by_x_width),
        (first[1], x, by_x_step),
        (first[2], x, by_x_width),
    ):
        (second,) = torch.autograd.grad(gradient, inputs, retain_graph=True)
        assert float(second) == pytest.approx(expected, abs=1e-3, rel=1e-3)


def test_double_backward_of_uniform_noise_is_linear_in_the_incoming_gradient() -> None:
    x = torch.linspace(-0.5, 1.5, 21, dtype=DOUBLE, requires_grad=True)
    weight = torch.linspace(1, 2, 21, dtype=DOUBLE, requires_grad=True)
    y = apply(x, scalar(0), scalar(1 / 3), scalar(1), None, Rounding(4, "uniform", "expected", 1.0))
    (first,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), weight)
    assert torch.equal(second, ((x >= 0) & (x <= 1)).to(DOUBLE))


def test_lower_bound_lets_a_descent_step_lift_a_value_but_not_push_it_down() -> None:
    value = torch.tensor([0.1, 0.1, 0.5, 0.5], requires_grad=True)
    bounded: Tensor = LowerBound.apply(value, 0.25)  # type: ignore[no-untyped-call]
    assert bounded.tolist() == [0.25, 0.25, 0.5, 0.5]
    torch.autograd.backward(bounded, torch.tensor([1.0, -1.0, 1.0, -1.0]))
    assert value.grad is not None
    assert value.grad.tolist() == [0.0, -1.0, 1.0, -1.0]


def test_a_scale_keeps_every_bit_of_the_value() -> None:
    value = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scaled: Tensor = LowerBound.apply(value, 0.0, 0.0123)  # type: ignore[no-untyped-call]
    assert torch.equal(scaled, value)
    torch.autograd.backward(scaled.sum())
    assert value.grad is not None
    torch.testing.assert_close(value.grad, torch.full_like(value, 0.0123))
