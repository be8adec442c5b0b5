"""Convolutions of a frozen copy in integer codes on the CPU: the same function, several times faster."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint.evaluation.code_layers import (
    CodeConv2d,
    CodeRule,
    code_rule,
    codes_of,
    layer_on_codes,
    rectified,
)
from squint.quantize import StochasticQuantizer, blocked, integer_kernel
from squint.quantize.autograd import noise_values
from squint.quantize.functional import tolerance
from squint.quantize.integer_kernel import IntegerConvolution
from squint.quantize.layers import QuantizedConv2d

_CPU = torch.device("cpu")


class IntegerConv2d(CodeConv2d):
    """A frozen convolution whose product runs on the processor's 8-bit instructions."""

    product: IntegerConvolution

    @property
    def has_bfloat16(self) -> bool:
        """Whether the processor has products of bfloat16."""
        return integer_kernel.fast_bfloat16()

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for (batch, channels, height, width)."""
        computes_here = self.product.scale.device == _CPU
        rule = code_rule(self.activation_quantizer, input, _CPU) if computes_here else None
        rectifies = self.rectifies and rule is not None and not rule.noisy
        if not rectifies:
            input = rectified(input, self.rectifies)
        if rule is None:
            return self.in_floats(input)
        quantizer = cast(StochasticQuantizer, self.activation_quantizer)
        k = quantizer._draw(input) if rule.noisy else None
        y: Tensor | None = _Convolve.apply(input, k, rule, self, rectifies)  # type: ignore[no-untyped-call]
        return self.in_floats(rectified(input, rectifies)) if y is None else y


def _bounds(grid: blocked.Grid, masked: bool, rectifies: bool) -> tuple[float, float] | None:
    """Return the values strictly between which gradients pass, or None where they pass everywhere."""
    edge = tolerance(grid.levels)
    lowest, highest = -math.inf, math.inf
    if masked:
        lowest, highest = (grid.low + grid.step * u for u in (-edge, grid.levels - 1 + edge))
    if rectifies:
        lowest = 0.0
    return (lowest, highest) if masked or rectifies else None


class _Convolve(torch.autograd.Function):
    """The integer product forward; the surrogate's mask times the transposed product backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, k: Tensor | None, rule: CodeRule, layer: IntegerConv2d, rectifies: bool
    ) -> Tensor | None:
        """Return the layer's output, channels last, or None where the input holds a NaN."""
        x = x if blocked.flat(x) is not None else x.contiguous()
        if k is not None and not x.is_contiguous():
            k = k.contiguous(memory_format=torch.channels_last)
        quantizer = cast(StochasticQuantizer, layer.activation_quantizer)
        grid = blocked.Grid(float(quantizer.low), quantizer._number("step"), quantizer.levels)

        def noise(integers: Tensor) -> Tensor:
            n = noise_values(integers, rule.noise, grid.levels, torch.float32)
            return n if rule.width == 1 else n.mul_(rule.width)

        codes = blocked.codes(x, grid, k, noise)
        if codes is None:
            return None
        ctx.bounds, ctx.layer, ctx.shape = _bounds(grid, rule.masked, rectifies), layer, x.shape
        ctx.save_for_backward(None if ctx.bounds is None else x)
        return layer.product(codes.contiguous(memory_format=torch.channels_last))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the gradient of the input alone."""
        (grad,), (x,) = grads, ctx.saved_tensors
        by_x = ctx.layer.gradient_before_mask(grad, ctx.shape)
        if x is not None and torch.is_grad_enabled():
            with torch.no_grad():
                mask = blocked.masked(torch.ones_like(x), x, *ctx.bounds)
            by_x = by_x * mask
        elif x is not None:
            by_x = blocked.masked(by_x, x, *ctx.bounds)
        return by_x, None, None, None, None


def integer_layer(layer: QuantizedConv2d, norm: nn.Module | None) -> IntegerConv2d | None:
    """Return the layer in integer codes, or None where it has none or this machine has no kernel for them.

    Args:
        layer: a layer on the CPU whose parameters will not change.
        norm: the frozen batch normalization that alone reads its output, or None.
    """
    found = codes_of(layer, norm) if integer_kernel.available() else None
    if found is None:
        return None
    product = IntegerConvolution(found.weight, found.scale, found.bias, found.zero_point, found.geometry)
    return layer_on_codes(IntegerConv2d, layer, norm, found, product)
