"""A copy of a network that computes what the network computes, in less time: nothing in it will change."""

from __future__ import annotations

import copy
import itertools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint.attacks.gradients import AnyModel
from squint.evaluation.code_layers import CodeConv2d
from squint.evaluation.integer_layers import integer_layer
from squint.evaluation.machine import device_of
from squint.evaluation.quick_networks import quicken
from squint.evaluation.tensor_core_layers import tensor_core_layer
from squint.quantize import QuantizedNetwork, quantizers
from squint.quantize.layers import QUANTIZED, QuantizedConv2d

_OURS = ("torch.nn.", "squint.quantize.", "squint.models.", "squint.ensemble", "squint.evaluation.")
_STEP_FLOOR = 1e-8
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def frozen(model: AnyModel, *, precise: bool = False) -> AnyModel:
    """Return a copy of the model in evaluation mode that computes the same function in less time.

    Weights are quantized once and not in every pass, learned steps and batch normalization are constants, and
    no parameter asks for a gradient. On a CPU with 8-bit products, and on a GPU, convolutions of quantized
    inputs with quantized weights run on integer codes. Their sums are exact where the model's float32 sums
    round, so a value that lies within rounding of a threshold may fall on its other side; on a GPU sums in
    floats are added up in another order, too. Elsewhere, where no layer runs on codes, outputs are bit for
    bit those of the model. Only networks made of torch's and squint's own layers, without hooks, are copied,
    since others may keep state that a copy would not share; any other model is returned as it is.

    Args:
        model: what will be attacked or scored, in the mode that its batch normalization is to have.
        precise: compute gradients in float32; otherwise layers on codes round weights and gradients to
            bfloat16 in the backward pass, where the processor has products of these.
    """
    if not isinstance(model, nn.Module) or not all(_known(part) for part in model.modules()):
        return model
    copied = copy.deepcopy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        for quantizer in quantizers(copied):
            step = quantizer.step.clamp_min(_STEP_FLOOR)
            del quantizer.step
            quantizer.register_buffer("step", step)
        networks = [part for part in copied.modules() if isinstance(part, QuantizedNetwork)]
        named = {part.network.get_submodule(part.features) for part in networks if part.features is not None}
        for parent in list(copied.modules()):
            _fold(parent, named)
        for parent in list(copied.modules()):
            _settle(parent)
        for part in copied.modules():
            quicken(part)
            if isinstance(part, CodeConv2d):
                part.set_precise(precise)
    if device_of(copied).type == "cuda":
        # The layout that tensor cores read; convolutions hand it on to all that follows them.
        copied.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return copied.eval()


def _known(part: nn.Module) -> bool:
    own = type(part).__module__.startswith(_OURS) and "forward" not in vars(part)
    return own and not any(getattr(part, hooks) for hooks in _HOOKS)


def _fold(parent: nn.Module, named: set[nn.Module]) -> None:
    """Put a convolution and the normalization that alone reads it into one layer, where it runs on codes."""
    if type(parent) is not nn.Sequential:
        return
    # Every place, as they run: `named_children` gives a layer that runs twice once.
    children = [(name, child) for name, child in parent._modules.items() if child is not None]
    for (name, layer), (after, norm) in itertools.pairwise(children):
        if type(layer) is QuantizedConv2d and type(norm) is nn.BatchNorm2d and not {layer, norm} & named:
            whole = _on_codes(layer, _FrozenNorm(norm).eval()) if norm.running_var is not None else None
            if whole is not None:
                setattr(parent, name, whole)
                setattr(parent, after, nn.Identity())


def _on_codes(layer: QuantizedConv2d, norm: nn.Module | None) -> CodeConv2d | None:
    """Return the layer in integer codes, by what its device offers, or None where that is nothing."""
    device = layer.weight.device.type
    if device == "cuda":
        return tensor_core_layer(layer, norm)
    return integer_layer(layer, norm) if device == "cpu" else None


def _settle(parent: nn.Module) -> None:
    """Replace what is computed anew in every pass among a module's direct children."""
    for name, child in list(parent.named_children()):
        if type(child) in QUANTIZED.values():
            layer = cast(Any, child)
            if layer.weight_quantizer is None or layer.weight_quantizer.stochastic:
                continue
            whole = _on_codes(layer, None) if type(child) is QuantizedConv2d else None
            if whole is not None:
                setattr(parent, name, whole)
                continue
            layer.weight = nn.Parameter(layer.quantized_weight()[0].contiguous(), requires_grad=False)
            layer.weight_quantizer = None
        elif type(child) in _NORMS and cast(nn.BatchNorm2d, child).running_var is not None:
            setattr(parent, name, _FrozenNorm(cast(nn.BatchNorm2d, child)).eval())


class _FrozenNorm(nn.Module):
    """Batch normalization by running statistics; its backward pass is one product with a constant."""

    mean: Tensor
    variance: Tensor
    scale: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)
        # Without an affine part both are None.
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        inverse = (variance + norm.eps).rsqrt()
        self.register_buffer("scale", inverse if norm.weight is None else norm.weight * inverse)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized values, shaped like x."""
        return cast(
            Tensor,
            _Normalize.apply(x, self.mean, self.variance, self.weight, self.bias, self.eps, self.scale),  # type: ignore[no-untyped-call]
        )


class _Normalize(torch.autograd.Function):
    """The values of `batch_norm` in evaluation mode, whose own backward pass costs several times as much."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        scale: Tensor,
    ) -> Tensor:
        """Return x normalized by the running statistics."""
        ctx.save_for_backward(scale)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the gradient of x alone."""
        (grad,), (scale,) = grads, ctx.saved_tensors
        return grad * scale.view(-1, *[1] * (grad.ndim - 2)), None, None, None, None, None, None
