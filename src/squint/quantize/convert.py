"""`quantize(module)`: any torch module in, a quantized copy out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from squint._checks import InputError, InputTypeError, check_bits, check_width, nearest
from squint.quantize.attention import ExplicitMultiheadAttention, has_explicit_form
from squint.quantize.layers import QUANTIZED, quantize_layer
from squint.quantize.quantizer import StochasticQuantizer
from squint.quantize.settings import LayerSettings, apply_overrides

_UNSUPPORTED = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.MultiheadAttention)


class QuantizedNetwork(nn.Module):
    """A quantized copy of a network behind the quantizer of its input.

    Attributes:
        input_quantizer: quantizer of the images, before any normalization; None for full precision.
        network: the converted copy.
        settings: the arguments of `quantize`, plain data.
        features: name of the layer (inside `network`) whose float input are the features, or None for the
            last linear layer.
    """

    def __init__(
        self,
        network: nn.Module,
        input_quantizer: StochasticQuantizer | None,
        settings: dict[str, Any],
        features: str | None,
    ) -> None:
        super().__init__()
        self.input_quantizer = input_quantizer
        self.network = network
        self.settings = settings
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for images (batch, channels, height, width) in [0, 1]."""
        return cast(Tensor, self.network(x if self.input_quantizer is None else self.input_quantizer(x)))


def quantize(
    module: nn.Module,
    weight_bits: int | None = 4,
    activation_bits: int | None = 4,
    input_bits: int | None = 2,
    *,
    first_last_bits: int | None = 8,
    noise: str = "uniform",
    width: float = 1.0,
    input_width: float | None = None,
    activation_width: float | None = None,
    weight_width: float = 0.0,
    input_range: tuple[float, float] = (0.0, 1.0),
    granularity: str = "element",
    learn_range: bool = True,
    learn_width: bool = False,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    features: str | None = None,
) -> QuantizedNetwork:
    """Return a quantized copy of `module`, which is left untouched.

    Convolutions (1d to 3d, transposed) and linear layers, those inside `nn.MultiheadAttention` included, get
    a quantizer per output channel on their weight and one per tensor on their input. Weights take signed
    grids that hold zero (1 bit: plus and minus a scale); activations are signed or unsigned as calibration
    finds. Other layers with weight products stay in full precision and are named in one warning.

    Args:
        module: any torch module that maps images in [0, 1] to logits.
        weight_bits: 1 to 8, or None for full precision; so for every `..._bits`.
        activation_bits: bits of every quantized layer's input.
        input_bits: bits of the image, quantized over `input_range` before the network sees it.
        first_last_bits: bits of weights and activations of the first and the last layer.
        noise: "uniform", "logistic" or "gaussian".
        width: noise width in steps for input and activations, unless `input_width` or `activation_width` say.
        input_width: noise width of the input quantizer; None means `width`.
        activation_width: noise width of the activation quantizers; None means `width`.
        weight_width: noise width of the weight quantizers; 0 keeps the weights still.
        input_range: lowest and highest level of the input quantizer.
        granularity: what shares a draw: "element", "channel", "example" or "tensor".
        learn_range: make the steps of weights and activations parameters.
        learn_width: make the widths of noisy activations parameters.
        overrides: layer name pattern (shell style) to `LayerSettings` fields, applied in order.
        features: name of the layer whose float input are the features; None: the last linear layer.

    Returns:
        The quantized network; activation ranges are unset until `calibrate`.

    Raises:
        squint.InputError: a setting is out of range or a pattern matches nothing.
    """
    check_bits("input_bits", input_bits)
    check_bits("first_last_bits", first_last_bits)
    check_width("width", width)
    if not isinstance(input_range, Sequence) or len(input_range) != 2:
        raise InputError(f"input_range is {input_range!r}; allowed: a pair of numbers, the lower one first")
    if not isinstance(module, nn.Module):
        raise InputTypeError(f"quantize needs a torch.nn.Module, got {type(module).__name__}")
    base = LayerSettings(
        weight_bits,
        activation_bits,
        noise,
        width if activation_width is None else activation_width,
        weight_width,
        granularity,
        learn_range,
        learn_width,
    )
    network = _explicit_attention(copy.deepcopy(module))
    layers = _supported_layers(network)
    if not layers:
        raise InputError(f"{type(module).__name__} has no convolution or linear layer to quantize")
    # In order of definition; `calibrate` finds out which ones read the images.
    first = next(iter(layers))
    ends = {first, next(reversed(layers))}
    at_ends = replace(base, weight_bits=first_last_bits, activation_bits=first_last_bits)
    settings = apply_overrides({name: at_ends if name in ends else base for name in layers}, overrides or {})
    _check_features(features, network)
    turned = _sequence_first(network)
    network = _replace(
        network,
        {
            layer: quantize_layer(
                layer, name, settings[name], first=name == first, batch_axis=int(layer in turned)
            )
            for name, layer in layers.items()
        },
    )
    _warn_unsupported(network)
    quantizer = None
    if input_bits is not None:
        quantizer = StochasticQuantizer(
            input_bits,
            *input_range,
            noise=noise,
            width=width if input_width is None else input_width,
            granularity=granularity,
        )
        quantizer.name = "input_quantizer"
        quantizer.to(next(network.parameters()).device)
    arguments = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "input_bits": input_bits,
        "first_last_bits": first_last_bits,
        "noise": noise,
        "width": width,
        "input_width": input_width,
        "activation_width": activation_width,
        "weight_width": weight_width,
        "input_range": list(input_range),
        "granularity": granularity,
        "learn_range": learn_range,
        "learn_width": learn_width,
        "overrides": {name: dict(values) for name, values in (overrides or {}).items()},
        "features": features,
    }
    result = QuantizedNetwork(network, quantizer, arguments, features)
    return result.train(module.training)


def _check_features(features: str | None, network: nn.Module) -> None:
    names = [name for name, _ in network.named_modules() if name]
    if features is not None and features not in names:
        raise InputError(f"features is {features!r}, no layer of the network{nearest(features, names)}")


def _explicit_attention(network: nn.Module) -> nn.Module:
    return _replace(
        network,
        {
            module: ExplicitMultiheadAttention(cast(nn.MultiheadAttention, module))
            for module in network.modules()
            if has_explicit_form(module)
        },
    )


def _sequence_first(network: nn.Module) -> set[nn.Module]:
    """Return the layers that torch's transformer layers call on (tokens, images, features)."""
    kinds = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    return {
        part
        for layer in layers
        if isinstance(layer.self_attn, ExplicitMultiheadAttention) and not layer.self_attn.batch_first
        for part in (layer.linear1, layer.linear2)
    }


def _supported_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers to quantize by name, each once; not those that an unsupported module owns."""
    owned = _owned(network)
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) in QUANTIZED and module not in owned
    }


def _owned(network: nn.Module) -> set[nn.Module]:
    """Return the parts of unsupported modules, which those may use without calling them."""
    unsupported = [module for module in network.modules() if isinstance(module, _UNSUPPORTED)]
    return {part for module in unsupported for part in module.modules() if part is not module}


def _replace(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Return the network with modules replaced wherever they occur; a shared module stays shared."""
    if network in new:
        return new[network]
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if child is not None and child in new:
                module._modules[name] = new[child]
    return network


def _warn_unsupported(network: nn.Module) -> None:
    kinds = (*_UNSUPPORTED, *QUANTIZED)
    owned = _owned(network)
    left = [
        f"{name or 'the module itself'} ({type(module).__name__})"
        for name, module in network.named_modules()
        if isinstance(module, kinds) and type(module) not in QUANTIZED.values() and module not in owned
    ]
    if left:
        warnings.warn(f"left in full precision: {', '.join(left)}", UserWarning, stacklevel=3)
