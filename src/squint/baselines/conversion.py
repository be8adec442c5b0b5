"""Layers of a full-precision network wrapped or replaced, in any architecture of convolutions and linears."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from squint._checks import InputError
from squint.quantize import StochasticQuantizer


class ConvertedNetwork(nn.Module):
    """A network whose layers a rival changed; `squint.save` writes how, `squint.load` does it again.

    Attributes:
        network: the changed network.
        rival: name and options of the rival whose `member` made it, plain data.
    """

    def __init__(self, network: nn.Module, rival: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.rival = dict(rival)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) for images (batch, channels, height, width) in [0, 1]."""
        return cast(Tensor, self.network(x))

    @property
    def weight_bits(self) -> str:
        """The fewest bits in which any layer's weight is deployed, as text; 32 for full precision."""
        layers = weighted_layers(self.network).values()
        return str(min(getattr(layer, "deployed_bits", (32, 32))[0] for layer in layers))


class Wrapped(nn.Module):
    """A convolution or linear layer whose input and weight each pass through a function first.

    Args:
        layer: the layer; it keeps its parameters.
        on_input: what its input passes through, or None.
        on_weight: what its weight passes through, or None.
        bits: bits of weight and input as deployed, for the table of costs.
    """

    def __init__(
        self,
        layer: nn.Module,
        on_input: nn.Module | None,
        on_weight: nn.Module | None,
        bits: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.on_input = on_input
        self.on_weight = on_weight
        if bits is not None:
            object.__setattr__(layer, "deployed_bits", bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for its usual input."""
        x = x if self.on_input is None else self.on_input(x)
        if self.on_weight is None:
            return cast(Tensor, self.layer(x))
        return with_weight(self.layer, self.on_weight(self.layer.weight), x)


def with_weight(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """Return the layer's output for x with another weight in the place of its own; its hooks run."""
    return cast(Tensor, functional_call(layer, {"weight": weight}, (x,)))


def fixed_bins(bits: int) -> StochasticQuantizer:
    """Return a quantizer to fixed bins on [0, 1], whose gradient is 1 on the closed range and 0 outside.

    It is squint's own without noise, so that attacks can swap its gradient and evaluation can look at it.
    """
    # On the CPU even where a network is only measured on the meta device: the quantizer checks its range.
    with torch.device("cpu"):
        return StochasticQuantizer(bits, width=0.0, gradient="straight_through")


def name_quantizers(network: nn.Module) -> None:
    """Give every quantizer inside the place where it stands as its name."""
    for name, module in network.named_modules():
        if isinstance(module, StochasticQuantizer):
            module.name = name


def weighted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers by name, in order of definition.

    Raises:
        squint.InputError: there are none.
    """
    found: dict[str, nn.Module] = {
        name: module for name, module in network.named_modules() if isinstance(module, _ConvNd | nn.Linear)
    }
    if not found:
        raise InputError(f"{type(network).__name__} has no convolution or linear layer to change")
    return found


def inner_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers but the first and the last, by name."""
    found = weighted_layers(network)
    return {name: found[name] for name in list(found)[1:-1]}


def replace_layers(
    network: nn.Module, layers: Mapping[str, nn.Module], change: Callable[[nn.Module], nn.Module]
) -> None:
    """Put `change(layer)` wherever each layer stands, in place; one that runs twice stays one."""
    new = {layer: change(layer) for layer in layers.values()}
    # As they are before anything is replaced: what comes in holds the old layers.
    for parent in list(network.modules()):
        if parent not in new.values():
            for own, child in parent._modules.items():
                if child in new:
                    parent._modules[own] = new[child]
