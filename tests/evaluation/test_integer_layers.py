"""Layers on integer codes: exact against float64, the surrogate's gradient, and floats where codes fail."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import squint
from squint._random import draw_noise
from squint.attacks.gradients import AnyModel
from squint.evaluation.frozen import frozen
from squint.evaluation.integer_layers import IntegerConv2d
from squint.quantize import QuantizedNetwork, StochasticQuantizer, attacker_view, integer_kernel
from tests.evaluation.code_networks import exact, gradient_of, images, network

needs_codes = pytest.mark.skipif(not integer_kernel.available(), reason="no exact 8-bit products here")


def layer_of(net: AnyModel) -> IntegerConv2d:
    layer = cast(nn.Sequential, cast(QuantizedNetwork, net).network)[0]
    assert isinstance(layer, IntegerConv2d)
    return layer


@needs_codes
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 1), (1, 4), (2, 2), (4, 4), (8, 8)])
def test_outputs_are_the_exact_sums(
    weight_bits: int, activation_bits: int, signed: bool, stride: int
) -> None:
    net, x = network(weight_bits, activation_bits, signed=signed, stride=stride), images(signed)
    quick = frozen(net)
    assert layer_of(quick).product.zero_point == (2 ** (activation_bits - 1) if signed else 0)
    expected, sizes = exact(net, x)
    # Levels and weights of the reference, scale, bias and output are float32 numbers: a few half ulps.
    assert bool(((cast(nn.Module, quick)(x) - expected).abs() <= 2.0**-21 * sizes).all())


@needs_codes
@pytest.mark.parametrize("noise", ["uniform", "logistic"])
def test_codes_of_a_noisy_quantizer_are_its_realised_levels(noise: str) -> None:
    gradient = "expected" if noise == "uniform" else "straight_through"
    net, x = network(activation_width=1.0, noise=noise), images()
    squint.set_gradient(net, gradient)
    quick = cast(nn.Module, frozen(net))
    for memory in (torch.contiguous_format, torch.channels_last):
        for strata in (None, [0]):
            with draw_noise([5], strata=strata, strata_total=4, shared_seed=1):
                got = quick(x.contiguous(memory_format=memory))
            with draw_noise([5], strata=strata, strata_total=4, shared_seed=1):
                expected, sizes = exact(net, x)
            assert bool(((got - expected).abs() <= 2.0**-21 * sizes).all())


@needs_codes
@pytest.mark.parametrize("gradient", ["expected", "straight_through", "identity"])
def test_gradients_are_the_surrogates(gradient: str) -> None:
    net, x = network(), images()
    # Some values lie below the range and some above it.
    wide = 3 * x - 1

    def view(model: AnyModel) -> nn.Module:
        return attacker_view(cast(nn.Module, model), gradient)

    cotangent = torch.randn(net(x).shape, generator=torch.Generator().manual_seed(4))
    expected = gradient_of(view(net), wide, cotangent)
    exactly = gradient_of(view(frozen(net, precise=True)), wide, cotangent)
    torch.testing.assert_close(exactly, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert bool((expected == 0).any()) == (gradient != "identity")
    quick = frozen(net)
    rounded = gradient_of(view(quick), wide, cotangent)
    weight = layer_of(quick).whole_weight()
    sizes = F.conv_transpose2d(cotangent.abs(), weight.abs(), padding=1)
    # Weight, gradient and result are rounded to 8 bits of mantissa, half a unit in the last place each.
    assert bool(((rounded - expected).abs() <= 3.1 * 2.0**-9 * sizes).all())
    assert torch.equal(rounded == 0, expected == 0)


@needs_codes
def test_gradients_can_be_differentiated_again() -> None:
    net, x = network(), images()
    found = []
    for model in (net, cast(nn.Module, frozen(net, precise=True))):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), leaf)[0])
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))


@needs_codes
def test_what_codes_cannot_say_runs_in_floats() -> None:
    net, x = network(), images()
    quick = cast(QuantizedNetwork, frozen(net))
    quantizer = cast(StochasticQuantizer, layer_of(quick).activation_quantizer)
    expected, _ = exact(net, x)
    seen = []
    handle = quantizer.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(quick(x).double(), expected, rtol=1e-4, atol=1e-4)
    handle.remove()
    assert seen == [1]
    # A copy's weights are quantized once and for all, so the twin is that of the activations.
    twins = [attacker_view(model, "additive", layers=["*activation_quantizer"]) for model in (quick, net)]
    torch.testing.assert_close(twins[0](x), twins[1](x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(twins[0](x), quick(x), rtol=1e-2, atol=1e-2)
    wide = copy.deepcopy(quick).double()
    torch.testing.assert_close(wide(x.double()), expected, rtol=1e-4, atol=1e-4)
    hole = x.clone()
    hole[1, 2, 3, 3] = float("nan")
    assert bool(quick(hole)[1].isnan().any())
    assert not bool(quick(hole)[0].isnan().any())


@pytest.mark.parametrize(
    "settings", [{"groups": 2}, {"weight_width": 1.0}, {"weight_bits": None}, {"activation_bits": None}]
)
def test_layers_without_codes_stay_as_they_are(settings: dict[str, int | float | None]) -> None:
    net = network(**settings)  # type: ignore[arg-type]
    assert not any(isinstance(part, IntegerConv2d) for part in cast(nn.Module, frozen(net)).modules())


@needs_codes
def test_weights_that_are_no_numbers_stay_in_floats() -> None:
    net, x = network(), images()
    norm = cast(nn.BatchNorm2d, cast(nn.Sequential, net.network)[1])
    norm.bias.data[0] = float("nan")
    assert bool(cast(nn.Module, frozen(net))(x)[:, 0].isnan().all())


@needs_codes
def test_a_copy_that_has_run_can_be_copied() -> None:
    quick, x = cast(nn.Module, frozen(network())), images()
    first = quick(x)
    assert torch.equal(copy.deepcopy(quick)(x), first)


def test_a_kernel_that_is_wrong_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(self: integer_kernel.IntegerConvolution, codes: Tensor) -> Tensor:
        sums = F.conv2d(codes.double() - self.zero_point, self.weight.double(), stride=2, padding=1)
        # Where 16-bit sums of two products saturate, no larger sum is reached.
        sums = sums.clamp(-most, most)
        return (sums * self.scale.double().view(-1, 1, 1) + self.bias.double().view(-1, 1, 1)).float()

    monkeypatch.setattr(integer_kernel.IntegerConvolution, "__call__", product)
    most = float("inf")
    assert integer_kernel.available.__wrapped__()
    most = 2.0**15
    assert not integer_kernel.available.__wrapped__()
