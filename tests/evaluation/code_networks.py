"""One quantized convolution with the normalization behind it, and what it gives in float64."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import squint
from squint.quantize import QuantizedNetwork, StochasticQuantizer
from squint.quantize.layers import QuantizedConv2d


def network(
    weight_bits: int | None = 4,
    activation_bits: int | None = 4,
    *,
    signed: bool = False,
    stride: int = 1,
    groups: int = 1,
    noise: str = "uniform",
    **settings: object,
) -> QuantizedNetwork:
    """Return one quantized convolution with bias and the normalization behind it."""
    generator = torch.Generator().manual_seed(1)
    conv = nn.Conv2d(4, 6 * groups, 3, stride, 1, groups=groups)
    norm = nn.BatchNorm2d(6 * groups)
    for parameter in (*conv.parameters(), *norm.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator)
    assert norm.running_var is not None
    norm.running_var.copy_(0.5 + torch.rand(6 * groups, generator=generator))
    given: dict[str, object] = {"first_last_bits": weight_bits, "activation_width": 0.0, **settings}
    net = squint.quantize(nn.Sequential(conv, norm), weight_bits, activation_bits, None, **given)  # type: ignore[arg-type]
    squint.calibrate(net, images())
    layer = cast(nn.Sequential, net.network)[0]
    assert isinstance(layer, QuantizedConv2d)
    if activation_bits is None:
        layer.activation_quantizer = None
    else:
        layer.activation_quantizer = StochasticQuantizer(
            activation_bits, width=float(cast(float, given["activation_width"])), noise=noise
        )
        levels, lowest = 2**activation_bits, -(2 ** (activation_bits - 1)) if signed else 0
        step = torch.tensor((2.0 if signed else 1.0) / (levels - 1))
        layer.activation_quantizer.set_grid(step, lowest, levels)
    return net.eval()


def images(signed: bool = False) -> Tensor:
    x = torch.rand(5, 4, 7, 7, generator=torch.Generator().manual_seed(2))
    return 2 * x - 1 if signed else x


def exact(net: QuantizedNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output in float64 and the sum of its terms' sizes, from float32 levels and weights."""
    conv, norm = cast(nn.Sequential, net.network)
    assert isinstance(conv, QuantizedConv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert conv.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values = cast(StochasticQuantizer, conv.activation_quantizer)(x).double()
    weight = conv.quantized_weight()[0].double()
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = (conv.bias - norm.running_mean).double() * factor + norm.bias.double()
    column = [-1, 1, 1]
    sums = F.conv2d(values, weight, None, conv.stride, conv.padding)
    sizes = F.conv2d(values.abs(), weight.abs(), None, conv.stride, conv.padding)
    return (
        sums * factor.view(column) + shift.view(column),
        sizes * factor.abs().view(column) + shift.abs().view(column),
    )


def gradient_of(net: nn.Module, x: Tensor, cotangent: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(net(leaf), leaf, cotangent)[0]
