"""Layers that run at one of several precisions, and the network that chooses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from squint._random import random_integers
from squint.baselines.conversion import ConvertedNetwork, with_weight
from squint.baselines.gaussian import folded_draws

_MOMENTUM = 0.1
_LEAST_STEP = 1e-8


def linear_quantize(values: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return values rounded to 2^bits levels from low to high, with the gradient of the identity."""
    levels = float(2**bits - 1)
    step = ((high - low) / levels).clamp_min(_LEAST_STEP)
    rounded = ((values - low) / step).clamp(0, levels).round() * step + low
    return values + (rounded - values).detach()


class SwitchableLayer(nn.Module):
    """A convolution or linear layer that runs at any of several precisions; `chosen` is set from outside.

    Args:
        layer: the layer; it keeps its parameters, in full precision.
        bits: the precisions.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, layer: nn.Module, bits: Sequence[int]) -> None:
        super().__init__()
        self.layer = layer
        self.bits = tuple(bits)
        self.chosen: int | None = None
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.tensor(False))
        object.__setattr__(layer, "deployed_bits", (max(bits), max(bits)))
        object.__setattr__(layer, "drawn_bits", self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output at the chosen precision, or in full precision where none is chosen."""
        low, high = self._range(x)
        if self.chosen is None:
            return cast(Tensor, self.layer(x))
        bits = self.bits[self.chosen]
        weight = cast(Tensor, self.layer.weight)
        rows = weight.detach().flatten(1)
        shape = (-1, *[1] * (weight.ndim - 1))
        ends = (rows.amin(1).view(shape), rows.amax(1).view(shape))
        return with_weight(
            self.layer, linear_quantize(weight, *ends, bits), linear_quantize(x, low, high, bits)
        )

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the input: the batch's in training, which move the running ones, else those.

        An attack on a network that has not trained yet finds none, and takes the batch's.
        """
        low, high = torch.aminmax(x.detach())
        if not self.training:
            # Chosen on the device: a look at `seen` would make a GPU wait at every layer.
            known = self.low.to(x.dtype), self.high.to(x.dtype)
            return torch.where(self.seen, known[0], low), torch.where(self.seen, known[1], high)
        with torch.no_grad():
            share = torch.where(self.seen, _MOMENTUM, 1.0)
            self.low.lerp_(low.to(self.low.dtype), share)
            self.high.lerp_(high.to(self.high.dtype), share)
            self.seen.fill_(True)
        return low, high


class SwitchableNorm(nn.Module):
    """Batch normalization with statistics and scales of its own for each precision; `chosen` is set outside.

    Args:
        norm: what every precision starts from.
        count: number of precisions.
    """

    def __init__(self, norm: nn.Module, count: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(deepcopy(norm) for _ in range(count))
        self.chosen: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalized by the chosen precision's statistics."""
        return cast(Tensor, self.norms[self.chosen or 0](x))


def norms_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the batch normalizations by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


class RandomPrecisionNetwork(ConvertedNetwork):
    """Draws a precision for every draw that is folded into the batch, from that draw's own stream.

    Args:
        network: with `SwitchableLayer`s and perhaps `SwitchableNorm`s.
        rival: name and options of the rival that made it.
        bits: the precisions.
        in_training: whether a precision is drawn in training too; without, training is in full precision.

    Attributes:
        held: place of the precision that all passes take, or None to draw one.
    """

    draws_noise = True

    def __init__(
        self, network: nn.Module, rival: Mapping[str, Any], bits: Sequence[int], in_training: bool
    ) -> None:
        super().__init__(network, rival)
        self.bits = tuple(bits)
        self.in_training = in_training
        self.held: int | None = None

    @property
    def weight_bits(self) -> str:
        """The fewest and the most bits of the set."""
        return f"{min(self.bits)}-{max(self.bits)}"

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) for images (batch, channels, height, width) in [0, 1]."""
        if self.training and not self.in_training:
            return self._at(None, x)
        if self.held is not None:
            return self._at(self.held, x)
        draws = folded_draws()
        k = random_integers((draws,), x.device)
        places = ((k.to(torch.int32) + 2**15) * len(self.bits) // 2**16).tolist()
        if len(set(places)) == 1:
            return self._at(places[0], x)
        # Draws of one precision run together; their rows go back to where they were.
        of_row = torch.tensor(places).repeat_interleave(len(x) // draws)
        rows = [(of_row == place).nonzero().squeeze(1).to(x.device) for place in sorted(set(places))]
        parts = [self._at(place, x[own]) for place, own in zip(sorted(set(places)), rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _at(self, place: int | None, x: Tensor) -> Tensor:
        for module in self.network.modules():
            if isinstance(module, SwitchableLayer | SwitchableNorm):
                module.chosen = place
        return super().forward(x)
