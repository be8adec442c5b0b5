"""What convolutions of a frozen copy on integer codes share, on the CPU and on a GPU.

The input's quantizer writes level indices instead of values, the product of indices and weight codes is exact
integer arithmetic, and its scale carries the steps of both and the batch normalization that follows. Where
float32 sums round, these do not: outputs agree with the float layer's up to float rounding. The gradient of
the input passes the surrogate that the quantizer names, unchanged; the product's transpose runs in bfloat16
(weights and gradient rounded to 8 bits of mantissa) unless float32 is asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint.quantize import StochasticQuantizer, integer_kernel
from squint.quantize.gradient_view import GradientView, current_view
from squint.quantize.integer_kernel import Geometry
from squint.quantize.layers import QuantizedConv2d

_LARGEST_WEIGHT = 127
_OFF_GRID = 1e-3
"""How far from a whole number of steps a frozen weight may lie: float rounding is a thousand times less."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CodeConv2d(QuantizedConv2d):
    """A frozen `QuantizedConv2d`, and the frozen batch normalization behind it, in integer codes.

    It falls back on the float layer wherever codes cannot say the same: other devices and dtypes, surrogates
    that are no mask, noise that elements share, a quantizer that someone watches by hooks.
    """

    norm: nn.Module
    rectifies: bool
    """Whether its input passes a ReLU first, which the network then leaves out."""
    zero_point: int
    geometry: Geometry
    factor: Tensor
    back_weight: Tensor

    @property
    def has_bfloat16(self) -> bool:
        """Whether the layer's device has products of bfloat16."""
        raise NotImplementedError

    def set_precise(self, precise: bool) -> None:
        """Compute gradients in float32, or else in bfloat16 where the processor has products of these."""
        kind = torch.bfloat16 if not precise and self.has_bfloat16 else torch.float32
        weight = self.whole_weight().to(kind, memory_format=torch.channels_last)
        self.register_buffer("back_weight", weight, persistent=False)

    def whole_weight(self) -> Tensor:
        """Return the weight times what the normalization multiplies by, (out, in, height, width)."""
        return self.weight.detach() * self.factor.view(-1, 1, 1, 1)

    def gradient_before_mask(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient of an input of that shape, before its quantizer's mask.

        Whoever differentiates once more gets float32 and operations that torch can differentiate.
        """
        weight = self.whole_weight() if torch.is_grad_enabled() else self.back_weight
        grad = grad.to(weight.dtype, memory_format=torch.channels_last)
        like = torch.empty(shape, dtype=weight.dtype, device=grad.device, memory_format=torch.channels_last)
        g = self.geometry
        rest = (None, g.stride, g.padding, g.dilation, False, [0, 0], 1, [True, False, False])
        by_input: Tensor = torch.ops.aten.convolution_backward(grad, like, weight, *rest)[0]
        return by_input

    def in_floats(self, x: Tensor) -> Tensor:
        """Return what the layer and its normalization give without codes."""
        return cast(Tensor, self.norm(super().forward(x)))


class CodeRule(NamedTuple):
    """How values become levels at this moment, and which gradient passes.

    Attributes:
        noise: name of the noise.
        width: its width in steps.
        noisy: whether any is drawn.
        masked: whether gradients stop outside of the range.
    """

    noise: str
    width: float
    noisy: bool
    masked: bool


def code_rule(quantizer: StochasticQuantizer | None, x: Tensor, device: torch.device) -> CodeRule | None:
    """Return how this quantizer makes codes of x, or None where only its own arithmetic will do."""
    if quantizer is None or quantizer.observer is not None or not quantizer._number("calibrated"):
        return None
    if x.device != device or x.dtype != torch.float32 or x.ndim != 4 or x.numel() == 0:
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
    return CodeRule(quantizer.noise, width, noisy, view.gradient != "identity")


class Codes(NamedTuple):
    """A frozen convolution in whole numbers, with the normalization behind it in scale and bias.

    Attributes:
        weight: int8 codes (out, in, height, width).
        scale: float32 (out,).
        bias: float32 (out,).
        zero_point: level index that stands for zero.
        geometry: stride, padding and dilation.
        values: the weight that the codes count, float32.
        factor: what the normalization multiplies by, float32 (out,).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    zero_point: int
    geometry: Geometry
    values: Tensor
    factor: Tensor


def codes_of(layer: QuantizedConv2d, norm: nn.Module | None) -> Codes | None:
    """Return a layer in whole numbers, or None where there are none that say the same.

    Args:
        layer: a layer whose parameters will not change.
        norm: the frozen batch normalization that alone reads its output, or None.
    """
    zero_point = _zero_point(layer.activation_quantizer)
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    found = _weight_codes(layer) if zero_point is not None and plain else None
    if zero_point is None or found is None:
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
    two = [cast(tuple[int, int], tuple(pair)) for pair in (layer.stride, layer.padding, layer.dilation)]
    return Codes(codes, scale, bias.float(), zero_point, Geometry(*two), weight, factor.float())


_Layer = TypeVar("_Layer", bound=CodeConv2d)


def layer_on_codes(
    kind: type[_Layer], layer: QuantizedConv2d, norm: nn.Module | None, codes: Codes, product: object
) -> _Layer:
    """Return the layer as one of `kind`, which shares its hyperparameters and computes by `product`."""
    new = kind.__new__(kind)
    new.__dict__ = {
        key: value.copy() if isinstance(value, dict) else value for key, value in layer.__dict__.items()
    }
    new.weight = nn.Parameter(codes.values, requires_grad=False)
    new.weight_quantizer = None
    new.norm = nn.Identity() if norm is None else norm
    new.zero_point, new.geometry = codes.zero_point, codes.geometry
    cast(Any, new).product = product
    new.rectifies = False
    new.register_buffer("factor", codes.factor, persistent=False)
    new.set_precise(False)
    return new


def rectified(x: Tensor, rectifies: bool) -> Tensor:
    """Return max(x, 0) where that is asked for."""
    return F.relu(x) if rectifies else x


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
    if quantizer is None or quantizer.stochastic or layer.weight.dtype != torch.float32:
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
