"""`attacker_view`: another backward pass over the same parameters; nothing of the model changes."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, InputError, InputTypeError
from squint._random import noise
from squint.quantize import AttackerView, StochasticQuantizer, attacker_view, calibrate, quantize, quantizers
from squint.quantize import functional as Q
from tests.quantize.nets import Residual


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, x: Tensor, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Return the output and the input gradient of its sum."""
    x = x.detach().clone().requires_grad_()
    with noise(torch.Generator().manual_seed(seed)):
        y = model(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.fixture
def net() -> nn.Module:
    quantized = quantize(Residual().eval(), activation_bits=2, first_last_bits=2)
    calibrate(quantized, images())
    return quantized


@pytest.mark.parametrize("gradient", Q.GRADIENTS)
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_forward_values_are_the_models_own(net: nn.Module, gradient: str, factor: float) -> None:
    assert torch.equal(run(attacker_view(net, gradient, factor), images())[0], run(net, images())[0])


def test_the_model_is_shared_and_unchanged(net: nn.Module) -> None:
    state = copy.deepcopy(net.state_dict())
    plain = run(net, images())
    view = attacker_view(net, "identity")
    changed = run(view, images())
    assert {id(p) for p in view.parameters()} == {id(p) for p in net.parameters()}
    assert not torch.equal(changed[1], plain[1])
    assert torch.equal(run(net, images())[1], plain[1])
    assert all(q.gradient == "expected" for q in quantizers(net))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert view.training == net.training


def test_the_view_outlives_its_forward_pass() -> None:
    """The surrogate is fixed when the forward pass runs, wherever the backward pass does."""
    q = StochasticQuantizer(2)
    x = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
    y = attacker_view(q, "identity")(x)
    z = q(x)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1]
    assert torch.autograd.grad(z.sum(), x)[0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("family", Q.NOISES)
def test_width_factor_widens_the_density_of_expected(family: str, factor: float) -> None:
    q = StochasticQuantizer(3, noise=family, width=0.75)
    x = torch.linspace(-0.5, 1.5, 201, dtype=torch.float64)
    exact = Q.expected_gradients(x, 0.0, float(q.step), 0.75 * factor, 8, family)["x"]
    torch.testing.assert_close(run(attacker_view(q, width_factor=factor), x)[1], exact, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", Q.NOISES)
def test_additive_is_the_noise_twin_with_the_same_mean(family: str) -> None:
    q = StochasticQuantizer(3, noise=family)
    x = torch.linspace(-0.2, 1.2, 29).expand(20_000, -1)
    y, gradient = run(attacker_view(q, "additive"), x)
    inside = (x[0] >= 0) & (x[0] <= 1)
    assert torch.equal(gradient[0], inside.float())
    n = (y - x.clamp(0, 1)).double() * 7
    # Five standard errors of a mean and of a variance whose kurtosis is at most that of logistic noise, 4.2.
    assert (n.mean(0).abs() < 5 * (1 / 12 / 20_000) ** 0.5).all()
    assert ((n.var(0) * 12 - 1).abs() < 5 * (3.2 / 20_000) ** 0.5 + 1e-3).all()
    q.rounding = "nearest"
    torch.testing.assert_close(run(attacker_view(q, "additive"), x)[0], x.clamp(0, 1))


def test_views_work_on_any_module_and_nest() -> None:
    module = nn.Sequential(nn.Linear(3, 3), StochasticQuantizer(1, -1.0, 1.0), nn.Linear(3, 2))
    outer = attacker_view(attacker_view(module, "identity"), "straight_through")
    x = 9 * torch.ones(2, 3)
    assert torch.equal(run(outer, x)[1], run(attacker_view(module, "identity"), x)[1])


def test_members_stay_visible() -> None:
    class Members(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = StochasticQuantizer(1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.q(x)
            return out

        def member_logits(
            self,
            x: Tensor,
            draws: int = 4,
            *,
            generator: torch.Generator | None = None,
            stratified: bool = False,
        ) -> Tensor:
            del generator, stratified
            return torch.stack([self.q(x)[None] for _ in range(draws)])

    view = attacker_view(Members(), "identity")
    assert isinstance(view, HasMemberLogits)
    x = torch.full((2, 3), 5.0, requires_grad=True)
    logits = cast(Any, view).member_logits(x, 7)
    assert logits.shape == (7, 1, 2, 3)
    assert torch.autograd.grad(logits.sum(), x)[0].tolist() == [[7.0] * 3] * 2
    assert not isinstance(attacker_view(nn.Linear(2, 2)), HasMemberLogits)


def test_bad_views_are_refused(net: nn.Module) -> None:
    with pytest.raises(InputError, match="gradient is 'additve'"):
        attacker_view(net, "additve")
    with pytest.raises(InputError, match="width_factor is 0"):
        attacker_view(net, width_factor=0)
    with pytest.raises(InputTypeError, match="got function"):
        attacker_view(cast(nn.Module, lambda x: x))
    assert isinstance(attacker_view(net), AttackerView)
