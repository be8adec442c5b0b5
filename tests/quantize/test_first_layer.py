"""The layer that reads the image never clips it: a clipped coarse image has no gradient, which is masking."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from squint.models import small_cnn
from squint.quantize import StochasticQuantizer, calibrate, quantize
from squint.quantize.observer import covering_step


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("levels_lowest", [(16, -8.0), (16, 0.0), (256, -128.0)])
def test_the_covering_step_holds_every_value(bits: int, levels_lowest: tuple[int, float]) -> None:
    levels, lowest = levels_lowest
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(bits))
    values = values if lowest < 0 else values.abs()
    step = covering_step(values, lowest, levels)[:, None]
    assert bool((values <= step * (lowest + levels - 1)).all())
    assert bool((values >= step * lowest).all())
    tight = step / 1.02
    assert bool(((values > tight * (lowest + levels - 1)) | (values < tight * lowest)).any(1).all())


def test_rows_of_zeros_have_step_one() -> None:
    assert covering_step(torch.zeros(2, 4), 0.0, 16).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("input_bits", [1, 2, None])
def test_every_pixel_has_a_gradient_at_the_first_layer(input_bits: int | None) -> None:
    net = quantize(small_cnn(in_channels=1, width=4), 2, 4, input_bits, activation_width=0.0)
    generator = torch.Generator().manual_seed(0)
    calibrate(net, torch.rand(32, 1, 8, 8, generator=generator))
    first = net.network.get_submodule("conv1.0")
    quantizer = first.activation_quantizer
    assert isinstance(quantizer, StochasticQuantizer)
    assert not any(isinstance(value, nn.Parameter) for value in (quantizer.step, quantizer.width))
    pixels = torch.tensor([0.0, 1.0, 0.25, 0.5]).view(1, 1, 2, 2)
    x = ((pixels - 0.5) / 0.25).requires_grad_()
    (slope,) = torch.autograd.grad(quantizer(x).sum(), x)
    assert slope.flatten().tolist() == [1.0] * 4


def test_other_layers_keep_a_learned_range() -> None:
    net = quantize(small_cnn(in_channels=1, width=4), 2, 4, 2)
    second = net.network.get_submodule("conv2.0").activation_quantizer
    assert isinstance(second, StochasticQuantizer)
    assert isinstance(second.step, nn.Parameter)
