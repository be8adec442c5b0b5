"""Integer weights with batch normalization folded into their scales, and biases in their sums' steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from squint.export.onnx.plan import Product, quantizer_pair
from squint.quantize import StochasticQuantizer

Array = np.ndarray[Any, Any]

SATURATION = 2**15 - 1
"""AVX2 and AVX-512 without VNNI add pairs of 8-bit products in 16 bits, and clip them there."""
NARROW = 63
"""Largest weight of 7 bits."""
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Affine:
    """Per output channel: y = scale * product + shift, from a layer's bias and its normalization."""

    scale: Array
    shift: Array


@dataclass(frozen=True)
class IntegerWeight:
    """weight = scale * factor * values, the normalization included.

    Attributes:
        values: int8, shaped like the layer's weight.
        factor: power of two that the graph multiplies them by, so that biases round finely.
        scale: (output channels,), float32, above 0.
        bits: width in which the values are stored: 2, 4 or 8.
        narrowed: whether 8-bit values were rounded to 7 bits.
        wide: whether pairs of products with the layer's input could leave 16 bits.
    """

    values: Array
    factor: int
    scale: Array
    bits: int
    narrowed: bool
    wide: bool


def affine(product: Product) -> Affine:
    """Return what follows the product, in float64."""
    layer, norm = product.layer, product.norm
    shift = np.zeros(len(layer.weight)) if layer.bias is None else array(layer.bias)
    scale = np.ones(len(layer.weight))
    if norm is not None:
        mean, variance = array(cast(Tensor, norm.running_mean)), array(cast(Tensor, norm.running_var))
        scale = 1 / np.sqrt(variance + norm.eps)
        gain = 1.0 if norm.weight is None else array(norm.weight)
        offset = 0.0 if norm.bias is None else array(norm.bias)
        scale, shift = scale * gain, (shift - mean) * scale * gain + offset
    return Affine(scale, shift)


def integer_weight(
    product: Product, largest_input: int, saturating: bool, least_bits: int = 2
) -> IntegerWeight:
    """Return a quantized layer's weight in integers, a channel of negative scale with its signs turned.

    Args:
        product: a layer with a weight quantizer.
        largest_input: largest code of its input, 1 to 255.
        saturating: round weights to 7 bits where pairs of products could leave 16 bits.
        least_bits: narrowest storage that the graph's operator set has.
    """
    values, step = grid_values(product)
    largest = largest_value(cast(StochasticQuantizer, quantizer_pair(product.layer)[1]))
    after = affine(product).scale
    values = values * np.sign(after)[:, *[None] * (values.ndim - 1)]
    scale = step * np.abs(after)
    # A channel that the normalization switches off: zeros at any scale.
    scale = np.where(scale > 0, scale, 1.0)
    used = float(np.abs(values).max(initial=0))
    wide = 2 * used * largest_input > SATURATION
    narrowed = saturating and wide
    if narrowed:
        values = np.rint(values * (NARROW / used))
        scale = scale * (used / NARROW)
    factor = 1 if wide else _finest(int(used), largest_input)
    scale = (scale / factor).astype(np.float32)
    bits = stored_bits(largest, least_bits)
    return IntegerWeight(values.astype(np.int8), factor, scale, bits, narrowed, wide and not narrowed)


def _finest(largest: int, largest_input: int) -> int:
    """Return the largest power of two that 8-bit weights can be multiplied by.

    A bias is a whole number of the accumulator's steps, input step times weight scale, and at 1 or 2 bits
    these are as large as biases are. In multiples of the weights they become finer; a power of two changes
    no weight. Pairs of products stay within the 16 bits that some CPUs add them in.
    """
    room = min(127, SATURATION // (2 * largest_input)) // max(largest, 1)
    return 1 << (max(room, 1).bit_length() - 1)


def stored_bits(largest: int, least: int = 2) -> int:
    """Return the narrowest of 2, 4 and 8 bits, and of at least `least`, that holds -largest .. largest."""
    return next(bits for bits in (2, 4, 8) if bits >= least and largest < 2 ** (bits - 1))


def largest_value(quantizer: StochasticQuantizer) -> int:
    """Return the largest magnitude of a weight grid in whole numbers (1 bit: of half a step)."""
    offset, top = float(quantizer.offset), quantizer.levels - 1
    return int(max(abs(offset), abs(offset + top)) * _halves(quantizer))


def _halves(quantizer: StochasticQuantizer) -> int:
    """Return 2 for a grid at odd halves of a step, which is whole in halves (1 bit)."""
    return 1 if float(quantizer.offset).is_integer() else 2


def grid_values(product: Product) -> tuple[Array, Array]:
    """Return whole numbers and a step per output channel (float64) whose product is the rounded weight."""
    quantizer = cast(StochasticQuantizer, quantizer_pair(product.layer)[1])
    with torch.no_grad():
        weight = quantizer(product.layer.weight)
        step = array(quantizer.step.detach().clamp_min(1e-8)).reshape(-1) / _halves(quantizer)
    step = np.broadcast_to(step, (weight.shape[0],))
    return np.rint(array(weight) / step[:, *[None] * (weight.ndim - 1)]), step


def integer_bias(shift: Array, scale: Array, weight: IntegerWeight) -> tuple[Array, IntegerWeight]:
    """Return the bias in int32 units of the accumulator's scale, and the weight that goes with it.

    A channel whose bias does not fit contributes nothing but its bias: its weights become zero.

    Args:
        shift: (output channels,) in real units.
        scale: accumulator scale of each channel, input scale times weight scale.
        weight: the layer's weight.
    """
    bias = np.rint(shift / scale)
    over = np.abs(bias) > _LARGEST_BIAS
    if over.any():
        values, wider = weight.values.copy(), weight.scale.copy()
        values[over] = 0
        wider[over] *= np.abs(bias[over]) / _LARGEST_BIAS
        weight = replace(weight, values=values, scale=wider.astype(np.float32))
        bias[over] = np.sign(bias[over]) * _LARGEST_BIAS
    return bias.astype(np.int32), weight


def array(tensor: Tensor) -> Array:
    """Return a tensor's values in float64."""
    result: Array = tensor.detach().cpu().double().numpy()
    return result
