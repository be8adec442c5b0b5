"""Convolutions of a frozen copy in integer codes on a GPU: the same function, by its tensor cores."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from squint.evaluation.code_layers import CodeConv2d, code_rule, codes_of, layer_on_codes, rectified
from squint.quantize import StochasticQuantizer, fused, tensor_cores
from squint.quantize.functional import inside
from squint.quantize.layers import QuantizedConv2d
from squint.quantize.tensor_cores import TensorCoreConvolution


class TensorCoreConv2d(CodeConv2d):
    """A frozen convolution whose product of codes runs as TF32, exactly."""

    product: TensorCoreConvolution

    @property
    def has_bfloat16(self) -> bool:
        """Whether the GPU has products of bfloat16."""
        return tensor_cores.fast_bfloat16(self.product.device)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for (batch, channels, height, width)."""
        rule = code_rule(self.activation_quantizer, input, self.product.device)
        if rule is None:
            return self.in_floats(rectified(input, self.rectifies))
        quantizer = cast(StochasticQuantizer, self.activation_quantizer)
        # The kernel's mask includes the ReLU's; it runs first where nothing is masked or noise lifts levels.
        rectifies = self.rectifies and rule.masked and not rule.noisy
        if not rectifies:
            input = rectified(input, self.rectifies)
        k = None
        if rule.noisy:
            k, input = quantizer._draw(input), input.contiguous()
        low, step, _ = quantizer._grid(input)
        from_zero = quantizer._number("offset") == 0
        held = fused.Pass(low, step, k, rule.width, quantizer.levels, from_zero)
        if not fused.applies(input, held, rule.noise):
            return self.in_floats(rectified(input, rectifies))
        given = (input, held, rule.masked, rectifies, self)
        return cast(Tensor, _Convolve.apply(*given))  # type: ignore[no-untyped-call]


class _Convolve(torch.autograd.Function):
    """The product of codes forward; the surrogate's mask times the transposed product backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, held: fused.Pass, masked: bool, rectifies: bool, layer: TensorCoreConv2d
    ) -> Tensor:
        """Return the layer's output, channels last."""
        ctx.shape, ctx.layer, ctx.held, ctx.rectifies = x.shape, layer, held._replace(k=None), rectifies
        ctx.save_for_backward(x if masked else None)
        return layer.product(fused.codes(x, held, layer.zero_point))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the gradient of the input alone."""
        (grad,), (x,) = grads, ctx.saved_tensors
        by_x = ctx.layer.gradient_before_mask(grad, ctx.shape)
        if x is None:
            return by_x.float(), None, None, None, None
        held: fused.Pass = ctx.held
        if torch.is_grad_enabled():
            with torch.no_grad():
                mask = inside((x - held.low) / held.step, held.levels)
                mask = mask & (x > 0) if ctx.rectifies else mask
            return by_x * mask, None, None, None, None
        by_x, _ = fused.gradient(by_x, x, held, sums=False, rectified=ctx.rectifies)
        return by_x, None, None, None, None


def tensor_core_layer(layer: QuantizedConv2d, norm: nn.Module | None) -> TensorCoreConv2d | None:
    """Return the layer on the GPU's tensor cores, or None where it has no codes or they are not exact there.

    Args:
        layer: a layer on a GPU whose parameters will not change.
        norm: the frozen batch normalization that alone reads its output, or None.
    """
    found = codes_of(layer, norm) if tensor_cores.available(layer.weight.device) else None
    if found is None:
        return None
    top = cast(StochasticQuantizer, layer.activation_quantizer).levels - 1
    if not tensor_cores.fits(found.weight, max(found.zero_point, top - found.zero_point)):
        return None
    weight = found.weight.float().contiguous(memory_format=torch.channels_last)
    product = TensorCoreConvolution(weight, found.scale, found.bias, found.geometry)
    return layer_on_codes(TensorCoreConv2d, layer, norm, found, product)
