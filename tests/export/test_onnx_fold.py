"""Folding into integers, against the float layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import squint
from squint.export.onnx.fold import SATURATION, affine, integer_bias, integer_weight, stored_bits
from squint.export.onnx.plan import Product
from squint.quantize import QuantizedNetwork


def _product(bits: int, gains: list[float]) -> Product:
    generator = torch.Generator().manual_seed(bits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        pair = nn.Sequential(nn.Conv2d(3, len(gains), 3), nn.BatchNorm2d(len(gains)))
    norm = pair[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(gains))
        norm.bias.copy_(torch.randn(len(gains), generator=generator))
        norm.running_mean.copy_(torch.randn(len(gains), generator=generator))
        norm.running_var.copy_(torch.rand(len(gains), generator=generator) + 0.5)
    net = squint.quantize(pair.eval(), None, None, None, first_last_bits=bits)
    assert isinstance(net, QuantizedNetwork)
    layer, norm = net.network[0], net.network[1]  # type: ignore[index]
    return Product("conv", layer, norm)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_folded_integers_compute_the_layer_and_its_normalization(bits: int) -> None:
    product = _product(bits, [0.7, -1.3, 0.0, 2.0])
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    folded, after = integer_weight(product, 255, False), affine(product)
    assert folded.values.dtype == np.int8
    assert folded.bits == {1: 2, 2: 2, 3: 4, 4: 4}.get(bits, 8)
    weight = torch.from_numpy(
        folded.factor * folded.values * folded.scale[:, None, None, None].astype(np.float64)
    )
    ours = nn.functional.conv2d(x, weight, torch.from_numpy(after.shift))
    assert product.norm is not None
    layer = product.layer
    assert layer.bias is not None
    rounded = layer.weight_quantizer(layer.weight)  # type: ignore[operator]
    inner = nn.functional.conv2d(x, rounded.double(), layer.bias.double())
    theirs = product.norm.double()(inner)
    # 27 products whose scale is rounded to float32.
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)


def test_wide_weights_are_narrowed_only_where_they_would_saturate() -> None:
    product = _product(8, [1.0])
    assert not integer_weight(product, 255, False).narrowed
    assert not integer_weight(product, 127, True).narrowed
    narrowed = integer_weight(product, 255, True)
    assert narrowed.narrowed
    assert 2 * 255 * int(np.abs(narrowed.values.astype(int)).max()) <= SATURATION
    plain = integer_weight(product, 255, False)
    difference = narrowed.values * narrowed.scale[0] - plain.values * plain.scale[0]
    assert float(np.abs(difference).max()) <= 0.5 * float(narrowed.scale[0]) * 1.0001


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("largest_input", [1, 15, 255])
def test_biases_round_as_finely_as_8_bits_allow(bits: int, largest_input: int) -> None:
    product = _product(bits, [1.0, 0.5])
    weight = integer_weight(product, largest_input, False)
    largest = weight.factor * int(np.abs(weight.values.astype(int)).max())
    assert largest <= 127
    assert weight.wide or 2 * largest * largest_input <= SATURATION
    # Another doubling would leave one of the two.
    assert 2 * largest > 127 or 4 * largest * largest_input > SATURATION
    shift = affine(product).shift
    accumulator = 0.1 * weight.scale.astype(np.float64)
    bias, _ = integer_bias(shift, accumulator, weight)
    assert float(np.abs(bias * accumulator - shift).max()) <= float(accumulator.max()) / 2


def test_a_bias_beyond_32_bits_stands_alone() -> None:
    product = _product(4, [1.0, 1.0])
    weight = integer_weight(product, 15, False)
    shift = np.array([3.0, 1e9])
    bias, kept = integer_bias(shift, 1e-3 * weight.scale.astype(np.float64), weight)
    assert bias.dtype == np.int32
    assert not kept.values[1].any()
    assert np.array_equal(kept.values[0], weight.values[0])
    assert np.allclose(bias * 1e-3 * kept.scale, shift, rtol=1e-4)


@pytest.mark.parametrize(("largest", "bits"), [(1, 2), (2, 4), (7, 4), (8, 8), (127, 8)])
def test_the_narrowest_storage_holds_both_signs(largest: int, bits: int) -> None:
    assert stored_bits(largest) == bits
    assert stored_bits(largest, 4) == max(bits, 4)
