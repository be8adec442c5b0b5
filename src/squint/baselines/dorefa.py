"""DoReFa: fixed bins for tanh-normalised weights and clipped activations.

Zhou et al. 2016, "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth
Gradients", arXiv:1606.06160. With quantize_k(r) = round((2^k - 1) r)/(2^k - 1) on [0, 1]:

    weights                    w_k = 2 quantize_k( tanh(w)/(2 max|tanh(w)|) + 1/2 ) - 1
    weights of 1 bit           w_1 = sign(w) E|w|
    activations                a_k = quantize_k( clip(a, 0, 1) )

and the straight-through gradient through quantize_k; the activations' function is squint's quantizer without
noise on [0, 1]. From the paper: first and last layer stay in full
precision, the maximum runs over all weights of a layer. Not from the paper: 4 bits each, our choice of one
point among those that it tries; gradients are not quantized (the paper's third k is 32).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from squint.baselines.conversion import (
    ConvertedNetwork,
    Wrapped,
    fixed_bins,
    inner_layers,
    name_quantizers,
    replace_layers,
)
from squint.baselines.rival import OPTIONS, Rival


def quantize_unit(r: Tensor, bits: int) -> Tensor:
    """Return r in [0, 1] rounded to 2^bits levels, with the gradient of the identity."""
    levels = float(2**bits - 1)
    return r + ((r * levels).round() / levels - r).detach()


class DorefaWeight(nn.Module):
    """The weights' function; that of 1 bit has no tanh."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, w: Tensor) -> Tensor:
        """Return the quantized weight, shaped like w."""
        if self.bits == 1:
            signs = torch.where(w >= 0, 1.0, -1.0).to(w.dtype) * w.detach().abs().mean()
            return w + (signs - w).detach()
        bounded = torch.tanh(w)
        unit = bounded / (2 * bounded.detach().abs().max().clamp_min(1e-12)) + 0.5
        return 2 * quantize_unit(unit, self.bits) - 1


@dataclass(config=OPTIONS)
class Dorefa(Rival):
    """DoReFa quantization of all layers but the first and the last."""

    name: ClassVar[str] = "dorefa"
    own_layers: ClassVar[bool] = True
    weight_bits: int = Field(default=4, ge=1, le=8)
    """Bits of the inner layers' weights."""
    activation_bits: int = Field(default=4, ge=1, le=8)
    """Bits of the inner layers' inputs."""

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network with DoReFa layers."""
        del place

        def change(layer: nn.Module) -> nn.Module:
            return Wrapped(
                layer,
                fixed_bins(self.activation_bits),
                DorefaWeight(self.weight_bits),
                (self.weight_bits, self.activation_bits),
            )

        replace_layers(network, inner_layers(network), change)
        name_quantizers(network)
        return ConvertedNetwork(network, self.plain())
