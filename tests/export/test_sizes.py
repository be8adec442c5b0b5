"""Sizes against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import squint
from squint import InputError
from squint.export.sizes import info_table
from squint.quantize.layers import QuantizedLayer


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 10),
    )


def _quantized(draws: int, width: float) -> squint.Ensemble:
    net = squint.quantize(
        _net(), 4, 3, 2, first_last_bits=None, width=width, overrides={"0": {"weight_bits": 2}}
    )
    ens = squint.Ensemble([net], draws=draws).eval()
    squint.calibrate(ens, torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return ens


def test_counts_of_a_network_made_by_hand() -> None:
    table = info_table(_quantized(4, 0.0), (3, 8, 8))
    conv, linear, norm = table.layers
    assert (conv.parameters, conv.weight_bits, conv.activation_bits) == (112, 2, 32)
    assert conv.multiplications == 4 * 4 * 4 * 27
    assert conv.packed_bytes == 108 * 2 // 8 + 4 * (4 + 4)
    assert (linear.parameters, linear.multiplications) == (650, 640)
    assert linear.packed_bytes == linear.full_bytes == 2600
    assert (norm.name, norm.parameters, norm.packed_bytes) == ("members.0.normalization", 8, 4 * (8 + 9))
    assert table.parameters == 112 + 650 + 8
    assert table.bit_operations == 1728 * 2 * 32 + 640 * 32 * 32
    assert table.full_bytes > table.packed_bytes


def test_a_stochastic_member_costs_its_draws() -> None:
    still, noisy = (info_table(_quantized(4, width), (3, 8, 8)) for width in (0.0, 1.0))
    assert noisy.bit_operations == 4 * still.bit_operations
    assert {layer.passes for layer in noisy.layers} == {4}


def test_parameters_are_those_of_the_network_before_quantization() -> None:
    base = squint.models.resnet20(10, 3, 8)
    net = squint.quantize(base, 4, 4, 2, learn_width=True)
    ens = squint.Ensemble([net, base]).eval()
    squint.calibrate(ens, torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    table = info_table(ens, (3, 8, 8))
    assert table.parameters == 2 * sum(p.numel() for p in base.parameters())


def test_it_leaves_no_trace() -> None:
    ens = _quantized(2, 1.0).train()
    squint.seed(5)
    stream = squint._random.default_generator().get_state()
    before = {name: value.clone() for name, value in ens.state_dict().items()}
    info_table(ens, (3, 8, 8))
    assert torch.equal(stream, squint._random.default_generator().get_state())
    assert ens.training
    assert all(torch.equal(before[name], value) for name, value in ens.state_dict().items())
    assert not any(module._forward_hooks for module in ens.modules())


@pytest.mark.parametrize(
    ("shape", "words"),
    [((3, 8), "channels, height, width"), ((3, 0, 8), "1 or more"), ((1, 8, 8), "refuses")],
)
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        info_table(_quantized(1, 0.0), shape)


def test_channels_that_lost_their_weights_are_counted() -> None:
    ens = _quantized(1, 0.0)
    assert (info_table(ens, (3, 8, 8)).channels, info_table(ens, (3, 8, 8)).dead_channels) == (4, 0)
    layer = next(part for part in ens.modules() if isinstance(part, QuantizedLayer))
    assert layer.weight_quantizer is not None
    with torch.no_grad():
        layer.weight_quantizer.step[1] = -0.01
        layer.weight_quantizer.step[2] = 100.0
    table = info_table(ens, (3, 8, 8))
    assert table.dead_channels == 2
    assert [each.dead_channels for each in table.layers] == [2, 0, 0]
    # Packed weights have their levels' size: what counts is their size beside the others'.
    with torch.no_grad():
        layer.get_parameter("weight").copy_(layer.quantized_weight()[0])
    assert info_table(ens, (3, 8, 8)).dead_channels == 2
