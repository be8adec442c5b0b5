"""Quantized layers: torch's own layers with a quantizer on their input and one on their weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint._random import current_source
from squint.quantize import small_maps
from squint.quantize.observer import best_step
from squint.quantize.quantizer import StochasticQuantizer
from squint.quantize.settings import LayerSettings

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class QuantizedLayer(nn.Module):
    """What quantized layers share: `activation_quantizer` and `weight_quantizer`, either of them None."""

    activation_quantizer: StochasticQuantizer | None
    weight_quantizer: StochasticQuantizer | None
    batch_axis: int
    """Dimension of the input that counts the images: 1 for torch's transformer layers by default, else 0."""

    def quantized_weight(self, draws: int = 1) -> Tensor:
        """Return the weight as the layer uses it, once for each draw: (draws, *weight shape)."""
        weight = cast(Tensor, self.weight)
        many = weight.expand(draws, *weight.shape)
        return many if self.weight_quantizer is None else cast(Tensor, self.weight_quantizer(many))

    def _apply_layer(self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return product(quantized input, quantized weight); folded draws do not share a noisy weight."""
        if self.activation_quantizer is not None:
            x = self.activation_quantizer(x)
        noisy = self.weight_quantizer is not None and self.weight_quantizer.stochastic
        draws = len(current_source().streams) if noisy else 1
        weights = self.quantized_weight(draws)
        if draws == 1:
            return product(x, weights[0])
        axis = self.batch_axis
        return torch.cat([product(*pair) for pair in zip(x.chunk(draws, axis), weights, strict=True)], axis)


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """`torch.nn.Linear` with quantized input and weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for (..., in_features)."""
        return self._apply_layer(input, lambda x, weight: F.linear(x, weight, self.bias))


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """`torch.nn.Conv1d` with quantized input and weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for (batch, channels, length)."""
        return self._apply_layer(input, lambda x, weight: self._conv_forward(x, weight, self.bias))


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """`torch.nn.Conv2d` with quantized input and weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for (batch, channels, height, width)."""
        return self._apply_layer(input, self._convolve)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if small_maps.applies(self, x, weight):
            return small_maps.convolve(x, weight, self.stride[0], cast(int, self.padding[0]))
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y


class QuantizedConv3d(QuantizedLayer, nn.Conv3d):
    """`torch.nn.Conv3d` with quantized input and weight."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for (batch, channels, depth, height, width)."""
        return self._apply_layer(input, lambda x, weight: self._conv_forward(x, weight, self.bias))


class _QuantizedTransposed(QuantizedLayer):
    """A transposed convolution; `convolve` is the function of its number of dimensions."""

    convolve: Callable[..., Tensor]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of (batch, channels, ...)."""
        layer = cast(Any, self)
        padding = layer._output_padding(
            input,
            output_size,
            layer.stride,
            layer.padding,
            layer.kernel_size,
            len(layer.kernel_size),
            layer.dilation,
        )
        rest = (layer.bias, layer.stride, layer.padding, padding, layer.groups, layer.dilation)
        return self._apply_layer(input, lambda x, weight: type(self).convolve(x, weight, *rest))


class QuantizedConvTranspose1d(_QuantizedTransposed, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with quantized input and weight."""

    convolve = F.conv_transpose1d


class QuantizedConvTranspose2d(_QuantizedTransposed, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with quantized input and weight."""

    convolve = F.conv_transpose2d


class QuantizedConvTranspose3d(_QuantizedTransposed, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with quantized input and weight."""

    convolve = F.conv_transpose3d


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Conv3d: QuantizedConv3d,
    nn.ConvTranspose1d: QuantizedConvTranspose1d,
    nn.ConvTranspose2d: QuantizedConvTranspose2d,
    nn.ConvTranspose3d: QuantizedConvTranspose3d,
}
"""Which layer becomes which."""


def quantize_layer(
    layer: nn.Module, name: str, settings: LayerSettings, *, first: bool = False, batch_axis: int = 0
) -> nn.Module:
    """Return the quantized form of `layer`, which shares its parameters, hooks and mode.

    Args:
        layer: of a type that `QUANTIZED` names.
        name: the layer's place in its network, for messages.
        settings: its bits and noise.
        first: the layer reads the images: the range of its input is fixed and covers every value seen, see
            `cover_readers`.
        batch_axis: dimension of the layer's input that counts the images.
    """
    kind = QUANTIZED[type(layer)]
    new = kind.__new__(kind)
    # Parameters, buffers, hooks and hyperparameters are the layer's own; only the containers are new.
    new.__dict__ = {
        key: value.copy() if isinstance(value, dict) else value for key, value in layer.__dict__.items()
    }
    new.weight_quantizer = new.activation_quantizer = None
    new.batch_axis = batch_axis
    if settings.weight_bits is not None:
        new.weight_quantizer = _weight_quantizer(layer, settings.weight_bits, settings)
        new.weight_quantizer.name = f"{name}.weight_quantizer"
    if settings.activation_bits is not None:
        new.activation_quantizer = _activation_quantizer(settings.activation_bits, settings, first)
        new.activation_quantizer.name = f"{name}.activation_quantizer"
        new.activation_quantizer.batch_axis = batch_axis
    return new.to(cast(Tensor, layer.weight).device).train(layer.training)


def output_axis(layer: nn.Module) -> int:
    """Return the dimension of a layer's weight that counts its output channels.

    It is the second of a transposed layer: (in, out/groups, ...), shared by its groups.
    """
    return 1 if isinstance(layer, _TRANSPOSED) else 0


def _activation_quantizer(bits: int, settings: LayerSettings, first: bool) -> StochasticQuantizer:
    quantizer = StochasticQuantizer(
        bits,
        noise=settings.noise,
        width=settings.activation_width,
        granularity=settings.granularity,
        learn_range=settings.learn_range and not first,
        learn_width=settings.learn_width and settings.activation_width > 0,
    )
    quantizer.lsq_scale = True
    quantizer.ranged_by_data = True
    quantizer.covers = first
    quantizer.calibrated.fill_(False)
    return quantizer


def _weight_quantizer(layer: nn.Module, bits: int, settings: LayerSettings) -> StochasticQuantizer:
    weight = cast(Tensor, layer.weight).detach()
    quantizer = StochasticQuantizer(
        bits, noise=settings.noise, width=settings.weight_width, learn_range=settings.learn_range
    )
    quantizer.lsq_scale = True
    axis = output_axis(layer)
    rows = weight.movedim(axis, 0).flatten(1).float()
    if bits == 1:
        levels, lowest = 2, -0.5
    else:
        levels, lowest = 2**bits - 1, -float(2 ** (bits - 1) - 1)
    shape = [1] * weight.ndim
    shape[axis] = -1
    quantizer.set_grid(best_step(rows, lowest, levels).reshape(shape), lowest, levels)
    return quantizer
