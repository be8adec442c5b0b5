"""What an ensemble costs: parameters, stored bytes and bit operations per prediction, layer by layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from squint._checks import InputError
from squint._random import noise
from squint.ensemble import Ensemble, varies
from squint.models import spec_of
from squint.quantize import QuantizedNetwork, StochasticQuantizer, set_rounding
from squint.quantize.layers import output_axis

FULL_BITS = 32
_NEXT_TO_ZERO = 1e-4
"""Share of a layer's largest weight up to which a channel's weights count as none."""
_COUNTED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class LayerSize:
    """One convolution or linear layer, or what remains of a member beside them.

    Attributes:
        name: place in the ensemble, such as `members.0.conv1.0`.
        parameters: weights and biases, without the quantizers' own.
        weight_bits: bits of a stored weight; 32 for full precision.
        activation_bits: bits of the layer's input; 32 for full precision.
        multiplications: multiply-accumulates for one image and one pass.
        passes: how often one prediction runs the layer (the draws, for a stochastic member).
        packed_bytes: weights in `weight_bits` each, scales and the rest in 32.
        full_bytes: every parameter in 32 bits.
        drawn_bits: where every pass draws one of several precisions for both operands, all of them.
        channels: output channels whose weights squint's quantizer rounds.
        dead_channels: those of them without weights: all rounded to zero, or to levels next to it.
    """

    name: str
    parameters: int
    weight_bits: int
    activation_bits: int
    multiplications: int
    passes: int
    packed_bytes: int
    full_bytes: int
    drawn_bits: tuple[int, ...] = ()
    channels: int = 0
    dead_channels: int = 0

    @property
    def bit_operations(self) -> int:
        """Multiplications times both operands' bits, over a prediction's passes; the mean of drawn bits."""
        if self.drawn_bits:
            products = sum(bits**2 for bits in self.drawn_bits) / len(self.drawn_bits)
            return round(self.multiplications * products * self.passes)
        return self.multiplications * self.weight_bits * self.activation_bits * self.passes


@dataclass(frozen=True)
class SizeTable:
    """The layers of an ensemble and their sums."""

    layers: tuple[LayerSize, ...]

    @property
    def parameters(self) -> int:
        """Weights, biases and normalization, without the quantizers' own."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def channels(self) -> int:
        """Output channels with quantized weights."""
        return sum(layer.channels for layer in self.layers)

    @property
    def dead_channels(self) -> int:
        """Output channels whose quantized weights are all zero."""
        return sum(layer.dead_channels for layer in self.layers)

    @property
    def bit_operations(self) -> int:
        """Bit operations of one prediction for one image, over members and draws."""
        return sum(layer.bit_operations for layer in self.layers)

    @property
    def packed_bytes(self) -> int:
        """Bytes with every weight in its own width."""
        return sum(layer.packed_bytes for layer in self.layers)

    @property
    def full_bytes(self) -> int:
        """Bytes with every parameter in 32 bits."""
        return sum(layer.full_bytes for layer in self.layers)


def info_table(ens: Ensemble, image_shape: Sequence[int]) -> SizeTable:
    """Return parameters, bits, bytes and bit operations of every layer, for one image and one prediction.

    Additions, normalization and the rounding itself are not counted as bit operations.

    Args:
        ens: a calibrated ensemble; it is not changed.
        image_shape: (channels, height, width) of one image.

    Raises:
        squint.InputError: the shape is not of three sizes of 1 or more, or the network refuses such images.
    """
    shape = tuple(image_shape)
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise InputError(f"image_shape is {shape!r}; allowed: (channels, height, width), each 1 or more")
    rows: list[LayerSize] = []
    for place, member in enumerate(ens.members):
        passes = ens.draws if varies(member) else 1
        counts = _multiplications(member, shape)
        rows += _member_rows(f"members.{place}.", member, counts, passes)
    return SizeTable(tuple(rows))


def _member_rows(prefix: str, member: nn.Module, counts: dict[str, int], passes: int) -> list[LayerSize]:
    network = member.network if isinstance(member, QuantizedNetwork) else member
    own = {id(p) for q in member.modules() if isinstance(q, StochasticQuantizer) for p in q.parameters()}
    rows, counted = [], 0
    for name, layer in network.named_modules():
        if not isinstance(layer, _COUNTED):
            continue
        weight, bias = layer.weight, layer.bias
        wq = cast("StochasticQuantizer | None", getattr(layer, "weight_quantizer", None))
        aq = cast("StochasticQuantizer | None", getattr(layer, "activation_quantizer", None))
        # A rival's layers have quantizers of their own kind, and say in how many bits they are deployed.
        weight_bits, input_bits = getattr(layer, "deployed_bits", (FULL_BITS, FULL_BITS))
        bits = weight_bits if wq is None else wq.bits
        others = (0 if bias is None else bias.numel()) + _steps(wq) + _steps(aq)
        parameters = weight.numel() + (0 if bias is None else bias.numel())
        counted += parameters
        rows.append(
            LayerSize(
                name=f"{prefix}{name}",
                parameters=parameters,
                weight_bits=bits,
                activation_bits=input_bits if aq is None else aq.bits,
                multiplications=counts.get(name, 0),
                passes=passes,
                packed_bytes=math.ceil(weight.numel() * bits / 8) + 4 * others,
                full_bytes=4 * parameters,
                drawn_bits=getattr(layer, "drawn_bits", ()),
                channels=0 if wq is None else weight.shape[output_axis(layer)],
                dead_channels=0 if wq is None else _dead_channels(layer, wq),
            )
        )
    rest = sum(p.numel() for p in member.parameters() if id(p) not in own) - counted
    statistics = sum(
        buffer.numel()
        for module in network.modules()
        if not isinstance(module, StochasticQuantizer)
        for buffer in module.buffers(recurse=False)
    )
    held = 4 * (rest + statistics)
    if held:
        name = f"{prefix}normalization"
        rows.append(LayerSize(name, rest, FULL_BITS, FULL_BITS, 0, passes, held, held))
    return rows


@torch.no_grad()
def _dead_channels(layer: nn.Module, quantizer: StochasticQuantizer) -> int:
    """Return how many output channels have no quantized weight that counts beside the layer's largest."""
    still = copy.deepcopy(quantizer)
    set_rounding(still, "nearest")
    kept = still(cast(Tensor, layer.weight)).abs()
    largest = kept.movedim(output_axis(layer), 0).flatten(1).amax(1)
    return int((largest <= _NEXT_TO_ZERO * kept.max()).sum())


def _steps(quantizer: StochasticQuantizer | None) -> int:
    return 0 if quantizer is None else quantizer.step.numel()


def _multiplications(member: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of each layer of the member's network, for one image."""
    twin = copy.deepcopy(member).cpu().float().eval()
    set_rounding(twin, "nearest")
    network = twin.network if isinstance(twin, QuantizedNetwork) else twin
    channels = (spec_of(network) or {}).get("in_channels", shape[0])
    if channels != shape[0]:
        # One channel would be spread over all by the normalization.
        raise InputError(f"image_shape is {shape!r}; allowed for this network: ({channels}, height, width)")
    counts: dict[str, int] = {}

    def hook(name: str, layer: nn.Module) -> None:
        def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            applied = inputs[0] if transposed else output
            # Each output (each input of a transposed layer) meets one filter of the weight.
            counts[name] = counts.get(name, 0) + applied[0].numel() * cast(Tensor, layer.weight)[0].numel()

        layer.register_forward_hook(count)

    for name, layer in network.named_modules():
        if isinstance(layer, _COUNTED):
            hook(name, layer)
    with torch.no_grad(), noise(torch.Generator()):
        try:
            twin(torch.full((1, *shape), 0.5))
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise InputError(f"image_shape is {shape!r}, which the network refuses: {first}") from None
    return counts
