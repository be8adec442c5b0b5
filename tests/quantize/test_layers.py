"""Quantized layers against torch's own layers with the weight put on its grid by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from squint.quantize import StochasticQuantizer, calibrate, quantize
from squint.quantize.layers import QUANTIZED

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 5), (3, 6)),
    (nn.Linear(6, 5, bias=False), (3, 4, 6)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    (nn.Conv2d(4, 8, 3, padding=2, dilation=2, padding_mode="reflect"), (3, 4, 7, 7)),
    (nn.Conv2d(6, 6, 3, padding="same", groups=6, bias=False), (3, 6, 5, 5)),
    (nn.Conv3d(2, 3, (1, 3, 2), stride=(1, 2, 1)), (3, 2, 3, 5, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (3, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2), (3, 4, 4, 4)),
    (nn.ConvTranspose3d(2, 3, 2, bias=False), (3, 2, 2, 3, 2)),
]
IDS = [f"{type(layer).__name__}-{i}" for i, (layer, _) in enumerate(LAYERS)]


def weight_quantizer(net: nn.Module) -> StochasticQuantizer:
    found = cast(Any, net).network.weight_quantizer
    assert isinstance(found, StochasticQuantizer)
    return found


def images(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def channel_axis(layer: nn.Module) -> int:
    return 1 if "Transpose" in type(layer).__name__ else 0


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=IDS)
def test_in_full_precision_the_layer_is_unchanged(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net = quantize(layer, input_bits=None, first_last_bits=None)
    assert type(net.network) is QUANTIZED[type(layer)]
    assert torch.equal(net(images(shape)), layer(images(shape)))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=IDS)
def test_weights_lie_on_symmetric_grids_per_output_channel(
    layer: nn.Module, shape: tuple[int, ...], bits: int
) -> None:
    net = quantize(layer, input_bits=None, overrides={"*": {"weight_bits": bits, "activation_bits": None}})
    q = weight_quantizer(net)
    weight = cast(Any, net.network).quantized_weight()[0].detach()
    axis = channel_axis(layer)
    assert q.step.numel() == weight.shape[axis]
    level = weight / q.step.detach()
    if bits == 1:
        torch.testing.assert_close(level.abs(), torch.full_like(level, 0.5))
        original = cast(Tensor, layer.weight).detach()
        assert torch.equal(level > 0, original > 0)
    else:
        torch.testing.assert_close(level, level.round(), atol=1e-4, rtol=0)
        assert float(level.abs().max()) <= 2 ** (bits - 1) - 1 + 1e-4
        assert q.levels == 2**bits - 1
        torch.testing.assert_close(q.low, -q.high)
    by_hand = cast(Any, layer)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    try:
        by_hand.load_state_dict({**state, "weight": weight})
        expected = layer(images(shape))
    finally:
        by_hand.load_state_dict(state)
    torch.testing.assert_close(net(images(shape)), expected)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=IDS)
def test_input_and_weight_both_learn(layer: nn.Module, shape: tuple[int, ...]) -> None:
    net = quantize(layer, first_last_bits=3)
    calibrate(net, images(shape))
    torch.autograd.backward(net(images(shape)).square().sum())
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_transposed_layers_take_an_output_size() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2)
    net = quantize(layer, input_bits=None, first_last_bits=None)
    x = images((1, 2, 4, 4))
    inner = cast(Any, net.network)
    assert torch.equal(inner(x, output_size=[10, 10]), layer(x, output_size=[10, 10]))


def test_eight_bit_weights_are_close_and_more_bits_are_closer() -> None:
    layer = nn.Conv2d(8, 8, 3)
    error = []
    for bits in range(1, 9):
        net = quantize(layer, input_bits=None, overrides={"*": {"weight_bits": bits}})
        weight = cast(Any, net.network).quantized_weight()[0].detach()
        error.append(float((weight - layer.weight.detach()).norm() / layer.weight.detach().norm()))
    assert error == sorted(error, reverse=True)
    # A uniform grid of 255 levels over the range of uniform weights: step/sqrt(12) against range/sqrt(12).
    assert error[-1] < 1.5 * 2 / 254


def test_still_weights_draw_no_noise_and_noisy_ones_do() -> None:
    layer = nn.Linear(6, 5)
    for width, noisy in ((0.0, False), (1.0, True)):
        net = quantize(layer, input_bits=None, weight_width=width, overrides={"*": {"activation_bits": None}})
        assert weight_quantizer(net).stochastic is noisy
        x = images((3, 6))
        assert torch.equal(net(x), net(x)) is not noisy
