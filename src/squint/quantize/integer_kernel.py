"""Convolution of integer codes on the CPU: exact products, one rounding, by the 8-bit instructions.

What the processor and this build of torch offer is found out once, by trying: a kernel counts only if it is
right on the hardest codes (without VNNI, an 8-bit unsigned by 8-bit signed product saturates).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CODES = 256
"""Most levels that an activation's codes may tell apart."""

_LARGEST_WEIGHT = 127
_ROUNDING = 2.0**-22
"""The product is exact; its scaling and the bias round in float32, at most twice."""


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of a convolution without groups, two numbers each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass
class IntegerConvolution:
    """y = scale_c * sum (code - zero_point) * weight + bias_c, summed exactly, in float32.

    Attributes:
        weight: int8 codes (out, in, height, width), without -128.
        scale: float32 (out,).
        bias: float32 (out,).
        zero_point: code that stands for zero, which is also what padding adds; 0 to 255.
        geometry: stride, padding and dilation.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    zero_point: int
    geometry: Geometry
    _packed: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # Packed weights are opaque to torch: they can be made again, not copied.
        return {**self.__dict__, "_packed": {}}

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the convolution of uint8 codes (batch, in, height, width), in the channels-last format."""
        g = self.geometry
        shape = (list(g.stride), list(g.padding), list(g.dilation), 1)
        size = tuple(codes.shape[2:])
        packed = self._packed.get(size)
        operators: Any = torch.ops.onednn
        if packed is None:
            packed = self._packed[size] = operators.qconv_prepack(
                self.weight, self.scale, 1.0, self.zero_point, *shape, list(codes.shape)
            )
        zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        given = (codes, 1.0, self.zero_point, packed, self.scale, zeros, self.bias, *shape)
        after: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
        return cast(Tensor, operators.qconv2d_pointwise(*given, *after))


@functools.cache
def available() -> bool:
    """Return whether this machine convolves integer codes exactly."""
    try:
        return all(_agrees(zero_point) for zero_point in (0, 128))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


@functools.cache
def fast_bfloat16() -> bool:
    """Return whether the processor has bfloat16 products; where it has not, they are slower than float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


def _agrees(zero_point: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(CODES, (2, 32, 5, 5), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-_LARGEST_WEIGHT, _LARGEST_WEIGHT + 1, (16, 32, 3, 3), generator=generator)
    # Sums of the largest products: what saturates shows here.
    codes[0], weight[:8] = CODES - 1, _LARGEST_WEIGHT
    scale = torch.linspace(-1.0, 1.0, 16)
    bias = torch.linspace(-500.0, 500.0, 16)
    geometry = Geometry((2, 2), (1, 1), (1, 1))
    product = IntegerConvolution(weight.to(torch.int8), scale, bias, zero_point, geometry)
    got = product(codes.contiguous(memory_format=torch.channels_last)).double()
    exact = F.conv2d(codes.double() - zero_point, weight.double(), stride=2, padding=1)
    expected = exact * scale.double().view(-1, 1, 1) + bias.double().view(-1, 1, 1)
    reach = (exact * scale.double().view(-1, 1, 1)).abs() + bias.double().abs().view(-1, 1, 1)
    return bool(((got - expected).abs() <= _ROUNDING * reach).all())
