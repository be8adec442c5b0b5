"""Convolution of integer codes on a GPU: exact products and sums, as TF32 numbers on its tensor cores.

TF32 holds whole numbers up to 2^11, so that codes of 8 bits are themselves; products are exact, and sums stay
exact in float32 below 2^24. Values would be rounded to 10 bits of mantissa, codes are not: their product has
the speed of TF32 and the accuracy of integers. Where a kernel adds up in another way (Winograd's transforms
have fractions), the nearest whole number is the sum all the same. Whether the device and this build of torch
do that is found out once, by trying.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from squint.quantize import fused
from squint.quantize.integer_kernel import Geometry

LARGEST_SUM = 2**22
"""Sums up to here are found exactly by float32 additions in any order, and rounding has room beside them."""


@dataclass
class TensorCoreConvolution:
    """y = scale_c * sum code * weight + bias_c, the sum exact, in float32.

    Attributes:
        weight: whole numbers (out, in, height, width), float32, channels last.
        scale: float32 (out,).
        bias: float32 (out,).
        geometry: stride, padding and dilation.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    geometry: Geometry

    @property
    def device(self) -> torch.device:
        """Where the convolution computes."""
        return self.weight.device

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the convolution of float32 codes (batch, in, height, width), zero standing for zero."""
        g = self.geometry
        with tf32():
            sums = F.conv2d(codes, self.weight, None, g.stride, g.padding, g.dilation)
        return fused.rescaled(sums, self.scale, self.bias)


def fits(weight: Tensor, largest: int) -> bool:
    """Return whether every sum of codes up to `largest` in size is exact, with weight codes (out, ...)."""
    return largest * int(weight.to(torch.int64).abs().flatten(1).sum(1).max()) < LARGEST_SUM


@contextmanager
def tf32() -> Iterator[None]:
    """Let convolutions inside round their operands to TF32, which codes do not notice."""
    backend: Any = torch.backends.cudnn
    found = backend.conv.fp32_precision
    backend.conv.fp32_precision = "tf32"
    try:
        yield
    finally:
        backend.conv.fp32_precision = found


@functools.cache
def available(device: torch.device) -> bool:
    """Return whether convolutions of codes are exact on this device."""
    try:
        return fused.on_device(torch.empty(0, device=device)) and all(
            _agrees(device, *case) for case in ((255, 127, 3, 1), (15, 7, 64, 1), (15, 7, 256, 2))
        )
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


@functools.cache
def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 products."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _agrees(device: torch.device, top: int, largest: int, channels: int, stride: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-top, top + 1, (2, channels, 16, 16), generator=generator).double()
    weight = torch.randint(-largest, largest + 1, (64, channels, 3, 3), generator=generator).double()
    # The largest sums, and odd ones: what is cut off shows here.
    codes[0], weight[:32] = top, largest
    exact = F.conv2d(codes, weight, stride=stride, padding=1)
    one = torch.ones(len(weight), device=device)
    kept = weight.float().to(device, memory_format=torch.channels_last)
    product = TensorCoreConvolution(kept, one, 0 * one, Geometry((stride, stride), (1, 1), (1, 1)))
    got = product(codes.float().to(device, memory_format=torch.channels_last))
    return torch.equal(got.double().cpu(), exact)
