"""Convolutions over few pixels: torch's results to the second derivative, and only where they pay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint import noise
from squint.models import resnet18
from squint.quantize import calibrate, quantize, small_maps
from squint.quantize.layers import QuantizedConv2d, quantize_layer
from squint.quantize.settings import LayerSettings

# Output pixels: 4, 4, 1 (from 2x2), 16, 9 and 4 with as many as the kernel covers; then maps that see all.
CASES = [
    *((2, 3, 1, 1), (4, 3, 2, 1), (2, 1, 2, 0), (4, 3, 1, 1), (5, 3, 2, 1), (4, 3, 1, 0)),
    *((1, 3, 1, 1), (3, 5, 1, 2), (2, 5, 1, 2), (1, 1, 1, 0)),
]


@pytest.mark.parametrize("many", [1, 4])
@pytest.mark.parametrize("reach", [0, 4, 16])
@pytest.mark.parametrize(("side", "kernel", "stride", "padding"), CASES)
def test_it_is_torchs_convolution(
    monkeypatch: pytest.MonkeyPatch,
    many: int,
    reach: int,
    side: int,
    kernel: int,
    stride: int,
    padding: int,
) -> None:
    monkeypatch.setattr(small_maps, "_TINY", reach)
    monkeypatch.setattr(small_maps, "_MANY", many)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 5, side, side), generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn((4, 5, kernel, kernel), generator=generator, dtype=torch.float64).requires_grad_()
    found = _derivatives(small_maps.convolve(x, weight, stride, padding), x, weight)
    expected = _derivatives(F.conv2d(x, weight, None, stride, padding), x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-6)


def _derivatives(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return y, the gradients of sum(y^2) and those of their squares' sum."""
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((value.square().sum() for value in first), y.new_zeros(())), inputs)
    return (y, *first, *second)


def _layer(channels: int = 64, **settings: object) -> QuantizedConv2d:
    settings = {"kernel_size": 3, "padding": 1, "bias": False} | settings
    given = nn.Conv2d(channels, channels, **settings)  # type: ignore[arg-type]
    layer = quantize_layer(given, "layer", LayerSettings(weight_bits=None, activation_bits=None))
    assert isinstance(layer, QuantizedConv2d)
    return layer


@pytest.mark.parametrize(("side", "batch"), [(4, 2), (2, 2), (2, 256)])
def test_a_layer_under_autocast_gives_torchs_output_and_gradients(side: int, batch: int) -> None:
    torch.manual_seed(0)
    layer, x = _layer(), torch.randn(batch, 64, side, side)
    grads = []
    for own in (True, False):
        values = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            assert small_maps.applies(layer, values, layer.weight)
            y = layer(values) if own else F.conv2d(values, layer.weight, padding=1)
        assert y.dtype == torch.bfloat16
        grads.append(
            (y.detach().float(), *torch.autograd.grad(y.float().square().sum(), (values, layer.weight)))
        )
    # Sums round otherwise from one processor to the next: single elements by a few hundredths of the largest.
    for ours, torchs in zip(*grads, strict=True):
        assert float((ours - torchs).norm() / torchs.norm()) < 0.02
        assert float((ours - torchs).abs().max() / torchs.abs().max()) < 0.04


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        (16, {}),
        (2, {"channels": 32}),
        (2, {"bias": True}),
        (2, {"groups": 2}),
        (4, {"dilation": 2, "padding": 2}),
        (2, {"padding_mode": "circular"}),
        (2, {"padding": "same"}),
        (2, {"kernel_size": (3, 1), "padding": (1, 0)}),
    ],
)
def test_other_layers_keep_torchs_operator(side: int, settings: dict[str, object]) -> None:
    layer = _layer(**settings)  # type: ignore[arg-type]
    x = torch.randn(1, layer.in_channels, side, side, requires_grad=True)
    assert not small_maps.applies(layer, x, layer.weight)
    assert layer(x).shape == (1, layer.out_channels, side, side)


def test_without_a_gradient_torchs_operator_runs() -> None:
    layer, x = _layer(), torch.randn(1, 64, 2, 2)
    assert small_maps.applies(layer, x, layer.weight)
    with torch.no_grad():
        assert not small_maps.applies(layer, x, layer.weight)
    # In float32 only the smallest maps gain.
    assert not small_maps.applies(layer, torch.randn(1, 64, 4, 4), layer.weight)
    assert not small_maps.applies(layer, x[..., :1], layer.weight)


def test_a_resnet18_has_the_same_input_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = quantize(resnet18(width=16, patch=2), 4, None, 2).eval()
    x = torch.rand(4, 3, 32, 32)
    calibrate(net, x)
    found = []
    for channels in (64, 10**6):
        monkeypatch.setattr(small_maps, "_CHANNELS", channels)
        values = x.clone().requires_grad_()
        with noise(torch.Generator().manual_seed(1)):
            found.append(torch.autograd.grad(net(values).square().sum(), values)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
