"""Members as nodes: integer convolutions between rounding steps, floats only where a sum needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from torch import nn

from squint.export.onnx.fold import Affine, affine, array, integer_bias, integer_weight
from squint.export.onnx.graph import Graph
from squint.export.onnx.noise import add_noise
from squint.export.onnx.plan import Flatten, MemberPlan, Pool, Product, Residual, Step, quantizer_pair
from squint.models import Normalize
from squint.quantize import StochasticQuantizer
from squint.quantize.quantizer import WIDTH_FLOOR

_FINE_STEPS = 8
"""Least number of 8-bit steps in one step of a noisy quantizer that reads an integer product."""
_SPREAD = 6
"""Standard deviations that a range spans where it is known from batch normalization alone."""


@dataclass
class Emission:
    """What the emission of a graph shares and finds.

    Attributes:
        graph: where nodes go.
        saturating: keep clear of CPUs that add 8-bit products in 16 bits.
        least_bits: narrowest storage of weights that the operator set has.
        ranges: smallest and largest output by a product's name, where images were measured.
        integer: names of products that the runtime is to compute in integers.
        floating: names of quantized products that stay in floats.
        narrowed: names of products whose weights were rounded to 7 bits.
        wide: names of products that are exact only on CPUs that add 8-bit products in 32 bits.
    """

    graph: Graph
    saturating: bool
    least_bits: int
    ranges: Mapping[str, tuple[float, float]]
    integer: list[str] = field(default_factory=list)
    floating: list[str] = field(default_factory=list)
    narrowed: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)

    def member(self, plan: MemberPlan, x: str, draws: int) -> str:
        """Return the member's logits (draws * batch, classes) for images x (batch, ...)."""
        return _Member(self, plan, draws).run(x)


class _Member:
    def __init__(self, emission: Emission, plan: MemberPlan, draws: int) -> None:
        self.to, self.graph, self.plan, self.draws = emission, emission.graph, plan, draws
        first = next(plan.products()).layer
        self.rank = 4 if isinstance(first, nn.Conv2d) else 2

    def run(self, x: str) -> str:
        if self.draws > 1:
            # Noise of every draw is its own, since every draw has elements of its own.
            repeats = [self.draws] + [1] * (self.rank - 1)
            x = self.graph.add("Tile", x, self.graph.constant(repeats, "int64"))
        if self.plan.input_quantizer is not None:
            x = self.rounded(self.plan.input_quantizer, x)
        for place, step in enumerate(self.plan.steps):
            following = self.plan.steps[place + 1] if place + 1 < len(self.plan.steps) else None
            x = self.step(step, x, following)
        return x

    def step(self, step: Step, x: str, following: Step | None) -> str:
        if isinstance(step, Normalize):
            centred = self.graph.add("Sub", x, self.graph.constant(step.mean.detach().cpu().numpy()))
            return self.graph.add("Div", centred, self.graph.constant(step.std.detach().cpu().numpy()))
        if isinstance(step, Product):
            return self.product(step, x, following)
        if isinstance(step, Residual):
            inner = self.product(step.second, self.product(step.first, x, step.second), None)
            beside = x if step.shortcut is None else self.product(step.shortcut, x, None)
            y = self.graph.add("Relu", self.graph.add("Add", inner, beside))
            known = self.to.ranges.get(step.name)
            if known is None or self.draws > 1:
                return y
            # In 8-bit codes the runtime adds integers; noise would see the codes' rounding.
            fine = max(known[1], 1e-8) / 255
            return self.graph.dequantize(self.graph.quantize(y, fine, 0), fine, 0)
        if isinstance(step, Pool):
            self.rank = 4 if step.keep else 2
            axes = self.graph.constant([2, 3], "int64")
            return self.graph.add("ReduceMean", x, axes, keepdims=int(step.keep))
        assert isinstance(step, Flatten)
        self.rank = 2
        return self.graph.add("Flatten", x, axis=1)

    def rounded(self, q: StochasticQuantizer, x: str) -> str:
        """Return x rounded by a quantizer whose grid may start anywhere, in floats, in torch's own order."""
        g, step, low = self.graph, _step(q), float(q.offset) * _step(q)
        u = g.add("Div", x if low == 0 else g.add("Sub", x, g.constant(low)), g.constant(step))
        if q.stochastic:
            u = add_noise(g, u, q.noise, q.granularity, _width(q), self.draws, self.rank)
        k = g.add("Ceil", g.add("Sub", u, g.constant(0.5)))
        k = g.add("Clip", k, g.constant(0.0), g.constant(float(q.levels - 1)))
        y = g.add("Mul", k, g.constant(step))
        return y if low == 0 else g.add("Add", y, g.constant(low))

    def codes(self, q: StochasticQuantizer, x: str) -> str:
        """Return x rounded to the quantizer's levels as uint8 codes."""
        if q.stochastic:
            x = add_noise(self.graph, x, q.noise, q.granularity, _width(q) * _step(q), self.draws, self.rank)
        return self.graph.quantize(x, _step(q), -int(q.offset), q.levels)

    def product(self, product: Product, x: str, following: Step | None) -> str:
        activation, weight = quantizer_pair(product.layer)
        after = affine(product)
        if activation is None:
            return self.rectified(product, self.float_product(product, x, after))
        codes = self.codes(activation, x)
        x = self.graph.dequantize(codes, _step(activation), -int(activation.offset))
        if weight is None:
            return self.rectified(product, self.float_product(product, x, after))
        quantized = integer_weight(product, activation.levels - 1, self.to.saturating, self.to.least_bits)
        accumulator = np.float32(_step(activation)) * quantized.scale
        bias, quantized = integer_bias(after.shift, accumulator, quantized)
        accumulator = np.float32(_step(activation)) * quantized.scale
        if quantized.narrowed:
            self.to.narrowed.append(product.name)
        if quantized.wide:
            self.to.wide.append(product.name)
        g = self.graph
        stored = g.narrow_integers(quantized.values, quantized.bits, quantized.factor)
        w = g.dequantize_channels(stored, quantized.scale, "int8")
        b = g.dequantize_channels(g.constant(bias, "int32"), accumulator, "int32")
        y = self.rectified(product, self.apply(product.layer, x, w, b))
        return self.narrowed_output(product, y, following)

    def float_product(self, product: Product, x: str, after: Affine) -> str:
        weight = array(_rounded_weight(product))
        weight = weight * after.scale[:, *[None] * (weight.ndim - 1)]
        if quantizer_pair(product.layer) != (None, None):
            self.to.floating.append(product.name)
        return self.apply(product.layer, x, self.graph.constant(weight), self.graph.constant(after.shift))

    def apply(self, layer: nn.Conv2d | nn.Linear, x: str, weight: str, bias: str) -> str:
        if isinstance(layer, nn.Linear):
            return self.graph.add("Gemm", x, weight, bias, transB=1)
        top, left = cast("tuple[int, int]", layer.padding)
        attributes: dict[str, Any] = {
            "kernel_shape": list(layer.kernel_size),
            "strides": list(layer.stride),
            "pads": [top, left, top, left],
            "dilations": list(layer.dilation),
            "group": layer.groups,
        }
        return self.graph.add("Conv", x, weight, bias, **attributes)

    def rectified(self, product: Product, y: str) -> str:
        return self.graph.add("Relu", y) if product.relu else y

    def narrowed_output(self, product: Product, y: str, following: Step | None) -> str:
        """Return y in the form that lets the runtime compute the product in integers, where there is one.

        That takes a rounding right behind it. The next layer's own will do; where there is none, or it needs
        noise first, 8-bit codes of the values' range stand in between.
        """
        if isinstance(product.layer, nn.Linear):
            self.to.integer.append(product.name)
            return y
        target = quantizer_pair(following.layer)[0] if isinstance(following, Product) else None
        if target is not None and not target.stochastic:
            self.to.integer.append(product.name)
            return y
        low, high = self.range_of(product)
        if target is not None:
            # Beyond half the noise outside the grid every value rounds to an end.
            reach = _width(target) / 2 if target.noise == "uniform" else 2 * _width(target)
            low = max(low, (float(target.offset) - reach) * _step(target))
            high = min(high, (float(target.offset) + target.levels - 1 + reach) * _step(target))
        low, high = min(low, 0.0), max(high, 0.0)
        step = max(high - low, 1e-8) / 255
        if not math.isfinite(step):
            self.to.floating.append(product.name)
            return y
        if target is not None and step * _FINE_STEPS > _step(target):
            self.to.floating.append(product.name)
            return y
        self.to.integer.append(product.name)
        zero_point = round(-low / step)
        return self.graph.dequantize(self.graph.quantize(y, step, zero_point), step, zero_point)

    def range_of(self, product: Product) -> tuple[float, float]:
        measured = self.to.ranges.get(product.name)
        if measured is not None:
            return measured
        norm = product.norm
        if norm is None or norm.weight is None:
            # Nothing is known of the values: an empty range keeps the product in floats.
            return -math.inf, math.inf
        centre, spread = array(norm.bias), _SPREAD * np.abs(array(norm.weight))
        low, high = float((centre - spread).min()), float((centre + spread).max())
        return (max(low, 0.0), max(high, 0.0)) if product.relu else (low, high)


def _rounded_weight(product: Product) -> Any:
    weight = quantizer_pair(product.layer)[1]
    return product.layer.weight if weight is None else weight(product.layer.weight)


def _step(q: StochasticQuantizer) -> float:
    return max(float(q.step.detach()), 1e-8)


def _width(q: StochasticQuantizer) -> float:
    """Return the noise width in steps, as the quantizer uses it."""
    width = float(q.width.detach())
    return max(width, WIDTH_FLOOR) if isinstance(q.width, nn.Parameter) else width
