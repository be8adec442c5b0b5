"""PACT: activations clipped at a learned level.

Choi et al. 2018, "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv:1805.06085:

    equation 1    y = (|x| - |x - alpha| + alpha)/2, which clips x to [0, alpha]
    equation 2    y_q = round( y (2^k - 1)/alpha ) alpha/(2^k - 1)
    equation 3    dy_q/dalpha = 1 where x >= alpha, 0 below

and an L2 penalty on every alpha. From the paper: one alpha per layer, weights quantized as in DoReFa, first
and last layer in full precision, the penalty's weight that of the weights' decay, 2e-4 for CIFAR-10. Not
from the paper: 4 bits, alpha's start at 6. The clip stands where the next layer reads its input; behind a
ReLU that is the same function, and elsewhere it takes the ReLU's part.
"""

from __future__ import annotations

from typing import Any, ClassVar

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
from squint.baselines.dorefa import DorefaWeight
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import Objective

_LEAST = 1e-3
"""Alpha is not used below it: the grid would have no width."""


class PactActivation(nn.Module):
    """Clips to [0, alpha] and rounds to 2^bits levels; equations 1 to 3."""

    def __init__(self, bits: int, start: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(start))
        self.quantizer = fixed_bins(bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized activation, shaped like x."""
        alpha = self.alpha.clamp_min(_LEAST).to(x.dtype)
        held = alpha.detach()
        # The gradient by x is the quantizer's; that by alpha is added apart, 1 where the clip cuts.
        clipped: Tensor = held * self.quantizer(x / held) + (alpha - held) * (x >= held)
        return clipped


def clip_penalty(ens: nn.Module) -> Tensor:
    """Return the sum of the squares of every alpha inside `ens`."""
    alphas: list[Tensor] = [module.alpha for module in ens.modules() if isinstance(module, PactActivation)]
    return torch.stack(alphas).square().sum()


@dataclass(config=OPTIONS)
class Pact(Rival):
    """Learned clipping of activations, DoReFa weights."""

    name: ClassVar[str] = "pact"
    own_layers: ClassVar[bool] = True
    weight_bits: int = Field(default=4, ge=1, le=8)
    """Bits of the inner layers' weights."""
    activation_bits: int = Field(default=4, ge=1, le=8)
    """Bits of the inner layers' inputs."""
    alpha_start: float = Field(default=6.0, gt=0)
    """Where every clipping level starts."""
    alpha_decay: float = Field(default=2e-4, ge=0)
    """Weight of the penalty on the squares of the clipping levels."""

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network with PACT layers."""
        del place

        def change(layer: nn.Module) -> nn.Module:
            return Wrapped(
                layer,
                PactActivation(self.activation_bits, self.alpha_start),
                DorefaWeight(self.weight_bits),
                (self.weight_bits, self.activation_bits),
            )

        replace_layers(network, inner_layers(network), change)
        name_quantizers(network)
        return ConvertedNetwork(network, self.plain())

    def objective(self, setup: Setup) -> Objective:
        """Return the system's loss with the penalty on the clipping levels."""
        base = super().objective(setup)

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            return {**base(ens, x, y, step), "clip_penalty": self.alpha_decay * clip_penalty(ens)}

        return objective
