"""Augmentation of whole batches on the tensors' own device, every draw from an explicit generator.

All functions take float images (batch, channels, height, width) in [0, 1] and return new ones of the same
shape, dtype and device, still in [0, 1]. Random numbers are drawn on the generator's device and then moved,
so a CPU generator gives the same augmentation on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_choice, check_number
from squint.data.dataset import need_generator


def random_crop(
    x: Tensor, padding: int, generator: torch.Generator, *, mode: Literal["reflect", "zero"] = "reflect"
) -> Tensor:
    """Return each image moved by whole pixels, uniform on -padding..padding in both directions.

    The same as cropping at random from the padded image; the padded image is never made.

    Args:
        x: float (batch, channels, height, width).
        padding: the longest shift in pixels; below height and width when the border is reflected.
        generator: draws the shifts.
        mode: what comes in from outside: the image `reflect`ed (edge not repeated) or `zero`.
    """
    _check_batch(x)
    check_choice("mode", mode, ("reflect", "zero"))
    height, width = x.shape[2:]
    highest = min(height, width) - 1
    check_number("padding", padding, 0, highest if mode == "reflect" else 2**15, whole=True)
    shifts = _integers(-padding, padding + 1, (2, len(x)), x, generator)
    rows = shifts[0, :, None] + torch.arange(height, device=x.device)
    columns = shifts[1, :, None] + torch.arange(width, device=x.device)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    if mode == "reflect":
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    else:
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    source = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    moved = x.flatten(2).gather(2, source[:, None, :].expand(-1, x.shape[1], -1)).view(x.shape)
    return moved if mode == "reflect" else moved * inside[:, None]


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, each mirrored left to right with probability one half."""
    _check_batch(x)
    flipped = _integers(0, 2, (len(x), 1, 1, 1), x, generator).bool()
    return torch.where(flipped, x.flip(-1), x)


def cutout(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return the images with one black square of `size` pixels a side each (DeVries and Taylor 2017).

    The centre is uniform over the image's pixels and the square may reach over the border, as in the paper.
    Black is 0 in pixel units here; the paper's 0 came after normalization and meant the mean colour.
    """
    _check_batch(x)
    check_number("size", size, 0, whole=True)
    height, width = x.shape[2:]
    top = _integers(0, height, (len(x), 1), x, generator) - size // 2
    left = _integers(0, width, (len(x), 1), x, generator) - size // 2
    rows = torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    in_rows = (rows >= top) & (rows < top + size)
    in_columns = (columns >= left) & (columns < left + size)
    return x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training recipe: shift, then mirror, then cut out.

    Attributes:
        crop: longest shift in pixels, border reflected; 0 for none.
        flip: mirror half of the images.
        cutout: side of the black square in pixels; 0 for none.
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        check_number("crop", self.crop, 0, whole=True)
        check_number("cutout", self.cutout, 0, whole=True)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the augmented batch; with nothing switched on, `x` itself and no draws."""
        if self.crop:
            x = random_crop(x, self.crop, generator)
        if self.flip:
            x = random_flip(x, generator)
        if self.cutout:
            x = cutout(x, self.cutout, generator)
        return x


def _check_batch(x: Tensor) -> None:
    # The range is checked where data comes in: scanning every training batch would stall a GPU.
    if not isinstance(x, Tensor):
        raise InputTypeError(f"augmentation needs a torch.Tensor, got {type(x).__name__}")
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(
            f"augmentation got shape {tuple(x.shape)} and dtype {x.dtype}; "
            "allowed: float images (batch, channels, height, width)"
        )


def _integers(low: int, high: int, shape: tuple[int, ...], x: Tensor, generator: torch.Generator) -> Tensor:
    generator = need_generator(generator, "augmentation")
    return torch.randint(low, high, shape, generator=generator, device=generator.device).to(x.device)


def _reflect(index: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - index.abs()).abs()
