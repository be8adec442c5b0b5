"""LSQ: fixed bins whose step is learned.

Esser et al. 2020, "Learned Step Size Quantization", ICLR, arXiv:1902.08153: v = s round(clip(x/s, -Q_N,
Q_P)), straight-through in x, and for the step (equation 3)

    dv/ds = -x/s + round(x/s) inside the range, -Q_N or Q_P outside, times g = 1/sqrt(N Q_P).

squint's own quantizer without noise is this one. From the paper: first and last layer at 8 bits, the same
bits for weights and activations, the gradient scale g, no decay of the step. What departs: weights have one
step per output channel (the paper: one per layer) on 2^bits - 1 levels (the paper: 2^bits), ranges start
from the least squared error (the paper: 2 E|x|/sqrt(Q_P)), training starts from fresh weights (the paper:
from trained ones).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from squint.baselines.rival import OPTIONS, Rival
from squint.quantize import quantize, set_gradient


@dataclass(config=OPTIONS)
class Lsq(Rival):
    """Deterministic quantization with learned steps."""

    name: ClassVar[str] = "lsq"
    own_layers: ClassVar[bool] = True
    weight_bits: int = Field(default=4, ge=1, le=8)
    """Bits of the inner layers' weights."""
    activation_bits: int = Field(default=4, ge=1, le=8)
    """Bits of the inner layers' inputs."""
    first_last_bits: int = Field(default=8, ge=1, le=8)
    """Bits of the first and the last layer's weights and inputs."""

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network quantized without noise; `fit` calibrates it."""
        del place
        member = quantize(
            network,
            self.weight_bits,
            self.activation_bits,
            None,
            first_last_bits=self.first_last_bits,
            width=0.0,
        )
        set_gradient(member, "straight_through")
        return member
