"""Codes on a GPU's tensor cores: on a GPU, or on a CPU under Triton's interpreter, with exact floats."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import squint
from squint._random import draw_noise
from squint.evaluation import frozen as copies
from squint.evaluation.code_layers import CodeConv2d
from squint.evaluation.integer_layers import integer_layer
from squint.evaluation.tensor_core_layers import TensorCoreConv2d, tensor_core_layer
from squint.quantize import (
    QuantizedNetwork,
    StochasticQuantizer,
    attacker_view,
    blocked,
    fused,
    integer_kernel,
    tensor_cores,
)
from tests.evaluation.code_networks import exact, gradient_of, images, network
from tests.gpu_kernels import DEVICE


@pytest.fixture(autouse=True)
def _on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "on_device", lambda _: True)
    monkeypatch.setattr(blocked, "applies", lambda *_: False)
    monkeypatch.setattr(copies, "_on_codes", tensor_core_layer)
    tensor_cores.available.cache_clear()


def copied(net: nn.Module, *, precise: bool = False) -> QuantizedNetwork:
    return cast(QuantizedNetwork, copies.frozen(net.to(DEVICE), precise=precise))


def layer_of(net: nn.Module) -> TensorCoreConv2d:
    layer = cast(nn.Sequential, cast(QuantizedNetwork, net).network)[0]
    assert isinstance(layer, TensorCoreConv2d)
    return layer


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 1), (2, 2), (4, 4), (8, 8)])
def test_outputs_are_the_exact_sums(
    weight_bits: int, activation_bits: int, layout: torch.memory_format, stride: int, signed: bool
) -> None:
    net, x = network(weight_bits, activation_bits, signed=signed, stride=stride), images(signed)
    expected, sizes = exact(net, x)
    quick = copied(net)
    assert layer_of(quick).zero_point == (2 ** (activation_bits - 1) if signed else 0)
    got = quick(x.to(DEVICE, memory_format=layout)).cpu()
    # Levels and weights of the reference, scale, bias and output are float32 numbers: a few half ulps.
    assert bool(((got - expected).abs() <= 2.0**-21 * sizes).all())


def test_codes_of_a_noisy_quantizer_are_its_realised_levels() -> None:
    net, x = network(activation_width=1.0).to(DEVICE), images().to(DEVICE)
    quick = copied(net)
    assert layer_of(quick).product.device == DEVICE
    with draw_noise([5]):
        got = quick(x.contiguous(memory_format=torch.channels_last))
    with draw_noise([5]):
        expected, sizes = exact(net, x)
    assert bool(((got - expected).abs() <= 2.0**-21 * sizes).all())


@pytest.mark.parametrize("gradient", ["expected", "identity"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_the_surrogates(
    gradient: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_cores, "fast_bfloat16", lambda _: True)
    net = network().to(DEVICE)
    # Some values lie below the range and some above it.
    wide = (3 * images() - 1).to(DEVICE, memory_format=layout)
    cotangent = torch.randn(5, 6, 7, 7, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    expected = gradient_of(attacker_view(net, gradient), wide, cotangent)
    exactly = gradient_of(attacker_view(copied(net, precise=True), gradient), wide, cotangent)
    torch.testing.assert_close(exactly, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    quick = copied(net)
    assert layer_of(quick).back_weight.dtype == torch.bfloat16
    rounded = gradient_of(attacker_view(quick, gradient), wide, cotangent)
    sizes = F.conv_transpose2d(cotangent.abs(), layer_of(quick).whole_weight().abs(), padding=1)
    # Weight, gradient and result are rounded to 8 bits of mantissa, half a unit in the last place each.
    assert bool(((rounded - expected).abs() <= 3.1 * 2.0**-9 * sizes).all())
    assert torch.equal(rounded == 0, expected == 0)
    assert bool((expected == 0).any()) == (gradient != "identity")


def test_gradients_can_be_differentiated_again() -> None:
    net, x = network().to(DEVICE), images().to(DEVICE)
    found = []
    for model in (net, copied(net, precise=True)):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), leaf)[0])
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))


def whole(width: float) -> tuple[QuantizedNetwork, Tensor]:
    """Return a residual network on the CPU and images that it was calibrated on."""
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = squint.quantize(squint.models.resnet8(width=4), 4, 4, None, activation_width=width)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            # Without a shift in front of a ReLU float sums fall on either side of zero.
            part.bias.data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    squint.calibrate(net, x)
    return net.eval(), x


@pytest.mark.parametrize("width", [0.0, 1.0])
def test_a_whole_network_is_what_it_was_and_leaves_rectifying_to_its_layers(width: float) -> None:
    net, x = whole(width)
    net, x = net.to(DEVICE), x.to(DEVICE)
    quick = copied(net, precise=True)
    layers = [part for part in quick.modules() if isinstance(part, CodeConv2d)]
    assert len(layers) == 9
    assert sum(layer.rectifies for layer in layers) == 3
    outputs, slopes = [], []
    for model in (net, quick):
        leaf = x.clone().requires_grad_()
        with draw_noise([3]):
            y = model(leaf)
        slopes.append(torch.autograd.grad(y.square().sum(), leaf)[0])
        outputs.append(y.detach())
    # A value within rounding of a threshold may fall on its other side.
    assert float((outputs[0] - outputs[1]).abs().median()) < 1e-4
    cosine = F.cosine_similarity(slopes[0].flatten(1), slopes[1].flatten(1))
    assert float(cosine.median()) > 0.999


@pytest.mark.skipif(not integer_kernel.available(), reason="no exact 8-bit products here")
def test_both_kinds_of_codes_give_the_same_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = whole(0.0)
    monkeypatch.setattr(copies, "_on_codes", integer_layer)
    expected = cast(nn.Module, copies.frozen(net))(x)
    monkeypatch.setattr(copies, "_on_codes", tensor_core_layer)
    # Additions outside of codes are a GPU's own.
    rest = 1e-5 if DEVICE.type == "cuda" else 0.0
    torch.testing.assert_close(copied(net)(x.to(DEVICE)).cpu(), expected, rtol=rest, atol=rest)


def test_what_codes_cannot_say_runs_in_floats() -> None:
    net, x = network().to(DEVICE), images().to(DEVICE)
    expected, _ = exact(net, x)
    quick = copied(net)
    seen = []
    quantizer = cast(StochasticQuantizer, layer_of(quick).activation_quantizer)
    handle = quantizer.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(quick(x).double(), expected, rtol=1e-4, atol=1e-4)
    handle.remove()
    assert seen == [1]
    hole = x.clone()
    hole[1, 2, 3, 3] = float("nan")
    assert bool(quick(hole)[1].isnan().any())
    assert not bool(quick(hole)[0].isnan().any())


def test_the_products_alone_are_rounded_and_sums_that_are_too_large_are_refused() -> None:
    known = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = known.fp32_precision
    with tensor_cores.tf32():
        assert known.fp32_precision == "tf32"
    assert known.fp32_precision == before
    weight = torch.full((2, 128, 3, 3), -127, dtype=torch.int8)
    assert tensor_cores.fits(weight, 28)
    assert not tensor_cores.fits(weight, 29)


def test_a_device_that_is_wrong_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(self: tensor_cores.TensorCoreConvolution, codes: Tensor) -> Tensor:
        sums = F.conv2d(codes, self.weight, stride=self.geometry.stride, padding=1)
        return (sums / off).round() * off

    monkeypatch.setattr(tensor_cores.TensorCoreConvolution, "__call__", product)
    off = 1.0
    assert tensor_cores.available.__wrapped__(DEVICE)
    off = 2.0
    assert not tensor_cores.available.__wrapped__(DEVICE)
