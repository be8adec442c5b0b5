"""Convolutions of a frozen copy in integer codes: the same function, several times faster on the CPU.

The input's quantizer writes level indices instead of values, the product of indices and weight codes is exact
integer arithmetic, and its scale carries the steps of both and the batch normalization that follows. Where
float32 sums round, these do not: outputs agree with the float layer's up to float rounding. The gradient of
the input passes the surrogate that the quantizer names, unchanged; the product's transpose runs in bfloat16
(weights and gradient rounded to 8 bits of mantissa) unless float32 is asked for.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint.quantize import StochasticQuantizer, blocked, integer_kernel
from squint.quantize.autograd import noise_values
from squint.quantize.functional import tolerance
from squint.quantize.gradient_view import GradientView, current_view
from squint.quantize.integer_kernel import Geometry, IntegerConvolution
from squint.quantize.layers import QuantizedConv2d

_LARGEST_WEIGHT = 127
_OFF_GRID = 1e-3
"""How far from a whole number of steps a frozen weight may lie: float rounding is a thousand times less."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class IntegerConv2d(QuantizedConv2d):
    """A frozen `QuantizedConv2d`, and the frozen batch normalization behind it, in integer codes.

    It falls back on the float layer wherever codes cannot say the same: other devices and dtypes, surrogates
    that are no mask, noise that elements share, a quantizer that someone watches by hooks.
    """

    norm: nn.Module
    rectifies: bool
    """Whether its input passes a ReLU first, which the network then leaves out."""
    factor: Tensor
    product: IntegerConvolution
    back_weight: Tensor

    def set_precise(self, precise: bool) -> None:
        """Compute gradients in float32, or else in bfloat16 where the processor has products of these."""
        kind = torch.bfloat16 if not precise and integer_kernel.fast_bfloat16() else torch.float32
        weight = self.weight.detach() * self.factor.view(-1, 1, 1, 1)
        self.register_buffer(
            "back_weight", weight.to(kind, memory_format=torch.channels_last), persistent=False
        )

    def whole_weight(self) -> Tensor:
        """Return the weight times what the normalization multiplies by, (out, in, height, width)."""
        return self.weight.detach() * self.factor.view(-1, 1, 1, 1)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for (batch, channels, height, width)."""
        rule = _rule(self.activation_quantizer, input) if self.product.scale.device.type == "cpu" else None
        rectifies = self.rectifies and rule is not None and not rule.noisy
        if self.rectifies and not rectifies:
            input = F.relu(input)
        if rule is None:
            return self._in_floats(input)
        k = None
        if rule.noisy:
            k = cast(StochasticQuantizer, self.activation_quantizer)._draw(input)
        y: Tensor | None = _Convolve.apply(input, k, rule, self, rectifies)  # type: ignore[no-untyped-call]
        if y is not None:
            return y
        return self._in_floats(F.relu(input) if rectifies else input)

    def _in_floats(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(super().forward(x)))


class _Rule(NamedTuple):
    """How values become levels, and which gradient passes."""

    grid: blocked.Grid
    noise: str
    width: float
    noisy: bool
    masked: bool

    def bounds(self, rectifies: bool) -> tuple[float, float] | None:
        """Return the values strictly between which gradients pass, or None where they pass everywhere."""
        edge = tolerance(self.grid.levels)
        lowest, highest = -math.inf, math.inf
        if self.masked:
            lowest, highest = (
                self.grid.low + self.grid.step * u for u in (-edge, self.grid.levels - 1 + edge)
            )
        if rectifies:
            lowest = 0.0
        return (lowest, highest) if self.masked or rectifies else None


def _rule(quantizer: StochasticQuantizer | None, x: Tensor) -> _Rule | None:
    """Return how this quantizer works at this moment, or None where only its own arithmetic will do."""
    if quantizer is None or quantizer.observer is not None or not quantizer._number("calibrated"):
        return None
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.ndim != 4 or x.numel() == 0:
        return None
    if any(getattr(quantizer, hooks) for hooks in _HOOKS):
        return None
    view = current_view(quantizer) or GradientView(quantizer.gradient)
    width = quantizer._fixed_width()
    noisy = quantizer.stochastic
    if width is None or (noisy and quantizer.granularity != "element"):
        return None
    dense = view.gradient == "expected" and width != 0
    exact = quantizer.noise == "uniform" and width * view.width_factor == 1
    if view.gradient == "additive" or (dense and not exact):
        return None
    grid = blocked.Grid(float(quantizer.low), quantizer._number("step"), quantizer.levels)
    return _Rule(grid, quantizer.noise, width, noisy, view.gradient != "identity")


class _Convolve(torch.autograd.Function):
    """The integer product forward; the surrogate's mask times the transposed product backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, k: Tensor | None, rule: _Rule, layer: IntegerConv2d, rectifies: bool
    ) -> Tensor | None:
        """Return the layer's output, channels last, or None where the input holds a NaN."""
        x = x if blocked.flat(x) is not None else x.contiguous()
        if k is not None and not x.is_contiguous():
            k = k.contiguous(memory_format=torch.channels_last)

        def noise(integers: Tensor) -> Tensor:
            n = noise_values(integers, rule.noise, rule.grid.levels, torch.float32)
            return n if rule.width == 1 else n.mul_(rule.width)

        codes = blocked.codes(x, rule.grid, k, noise)
        if codes is None:
            return None
        ctx.bounds, ctx.layer, ctx.shape = rule.bounds(rectifies), layer, x.shape
        ctx.save_for_backward(None if ctx.bounds is None else x)
        return layer.product(codes.contiguous(memory_format=torch.channels_last))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the gradient of the input alone."""
        (grad,), (x,) = grads, ctx.saved_tensors
        layer: IntegerConv2d = ctx.layer
        # Whoever differentiates once more gets float32 and operations that torch can differentiate.
        again = torch.is_grad_enabled()
        weight = layer.whole_weight() if again else layer.back_weight
        kind = weight.dtype
        grad = grad.to(kind, memory_format=torch.channels_last)
        like = torch.empty(ctx.shape, dtype=kind, memory_format=torch.channels_last)
        g = layer.product.geometry
        rest = (None, g.stride, g.padding, g.dilation, False, [0, 0], 1, [True, False, False])
        by_x = torch.ops.aten.convolution_backward(grad, like, weight, *rest)[0]
        if x is not None and again:
            with torch.no_grad():
                mask = blocked.masked(torch.ones_like(x), x, *ctx.bounds)
            by_x = by_x * mask
        elif x is not None:
            by_x = blocked.masked(by_x, x, *ctx.bounds)
        return by_x, None, None, None, None


def integer_layer(layer: QuantizedConv2d, norm: nn.Module | None) -> IntegerConv2d | None:
    """Return the layer in integer codes, or None where it has none or this machine has no kernel for them.

    Args:
        layer: a layer whose parameters will not change.
        norm: the frozen batch normalization that alone reads its output, or None.
    """
    zero_point = _zero_point(layer.activation_quantizer)
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if zero_point is None or not plain or not integer_kernel.available():
        return None
    found = _weight_codes(layer)
    if found is None:
        return None
    weight, codes, steps = found
    quantizer = cast(StochasticQuantizer, layer.activation_quantizer)
    scale = steps.double() * quantizer.step.double()
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.double()
    factor = torch.ones_like(scale)
    if norm is not None:
        factor, shift = _affine(norm)
        bias = bias * factor + shift
    scale = (scale * factor).float()
    if not bool((scale.isfinite() & bias.isfinite()).all()):
        return None
    new = IntegerConv2d.__new__(IntegerConv2d)
    new.__dict__ = {
        key: value.copy() if isinstance(value, dict) else value for key, value in layer.__dict__.items()
    }
    new.weight = nn.Parameter(weight, requires_grad=False)
    new.weight_quantizer = None
    new.norm = nn.Identity() if norm is None else norm
    two = [cast(tuple[int, int], tuple(pair)) for pair in (layer.stride, layer.padding, layer.dilation)]
    new.product = IntegerConvolution(codes, scale, bias.float(), zero_point, Geometry(*two))
    new.rectifies = False
    new.register_buffer("factor", factor.float(), persistent=False)
    new.set_precise(False)
    return new


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a frozen batch normalization as float64 factor and shift per channel."""
    part = cast(Any, norm)
    factor = (part.variance.double() + part.eps).rsqrt()
    if part.weight is not None:
        factor = factor * part.weight.double()
    shift = -part.mean.double() * factor
    return factor, shift if part.bias is None else shift + part.bias.double()


def _weight_codes(layer: QuantizedConv2d) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the weight, int8 codes of its shape and the steps (out,) that they count; None: it has none."""
    quantizer = layer.weight_quantizer
    if quantizer is None or quantizer.stochastic:
        return None
    if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
        return None
    weight = layer.quantized_weight()[0].contiguous()
    # A grid of plus and minus half a step counts in half steps.
    halves = 1 if float(quantizer.offset).is_integer() else 2
    step = quantizer.step.expand(len(weight), 1, 1, 1) / halves
    exact = weight / step
    codes = exact.round()
    # Comparisons that a NaN fails: it stays in floats, which tell of it.
    on_grid = (exact - codes).abs().le(_OFF_GRID) & codes.abs().le(_LARGEST_WEIGHT)
    if not bool(on_grid.all()):
        return None
    return weight, codes.to(torch.int8), step.flatten()


def _zero_point(quantizer: StochasticQuantizer | None) -> int | None:
    """Return the level index of zero, or None where the grid holds no zero or needs more than 8 bits."""
    if quantizer is None or quantizer.step.ndim > 0 or quantizer.levels > integer_kernel.CODES:
        return None
    zero = -float(quantizer.offset)
    return int(zero) if zero.is_integer() and 0 <= zero < integer_kernel.CODES else None
