"""Common corruptions in five strengths: pure functions of float images and an explicit generator.

The families are those of Hendrycks and Dietterich (2019), the strengths our own, so that they work for images
of 8 by 8 pixels as well as for large ones: lengths are in pixels of an image of 32 and grow with larger ones,
or are shares of the image's side. Figures under them are no ImageNet-C or CIFAR-10-C figures. The mean L2
distance to the clean images grows with the strength.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from squint._checks import InputError, check_choice, check_images, check_number
from squint.data.dataset import need_generator

STRENGTHS = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 8

_Corruption = Callable[[Tensor, float, torch.Generator], Tensor]


def corrupt(x: Tensor, kind: str, strength: int, generator: torch.Generator) -> Tensor:
    """Return corrupted images, of x's shape, dtype and device, in [0, 1].

    Random numbers are drawn on the generator's device and then moved, so a CPU generator gives the same
    corruption on every device.

    Args:
        x: float images (batch, channels, height, width) in [0, 1], 8 by 8 pixels or larger.
        kind: one of `CORRUPTIONS`.
        strength: 1 (slight) to 5 (severe).
        generator: source of all randomness; kinds without any leave it untouched.

    Raises:
        InputError: images, kind or strength are not allowed; InputTypeError: no generator.
    """
    check_images(x)
    if x.ndim != 4 or min(x.shape[2:]) < SMALLEST_SIDE:
        raise InputError(
            f"images have shape {tuple(x.shape)}; allowed: (batch, channels, height, width) of "
            f"{SMALLEST_SIDE} by {SMALLEST_SIDE} pixels or more"
        )
    check_choice("corruption", kind, CORRUPTIONS)
    check_number("strength", strength, STRENGTHS[0], STRENGTHS[-1], whole=True)
    change, levels = _KINDS[kind]
    clean = x.detach().to(torch.float32).clamp(0, 1)
    changed = change(clean, levels[int(strength) - 1], need_generator(generator, "corrupt"))
    return changed.clamp(0, 1).to(x.dtype)


def _gaussian_noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return x + deviation * _normal(x.shape, x, generator)


def _shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Return counts of photons of which a white pixel receives `photons` on average."""
    counts = torch.poisson((x * photons).to(generator.device), generator=generator)
    return counts.to(x.device) / photons


def _impulse_noise(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return the images with a share of all values replaced by 0 or 1."""
    drawn = _uniform(x.shape, x, generator)
    return torch.where(drawn < share, (drawn < share / 2).to(x.dtype), x)


def _gaussian_blur(x: Tensor, sigma: float, _: torch.Generator) -> Tensor:
    sigma *= _scale(x)
    places = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1, device=x.device, dtype=x.dtype)
    line = (-places.square() / (2 * sigma**2)).exp()
    return _filtered(x, line[:, None] * line)


def _defocus_blur(x: Tensor, radius: float, _: torch.Generator) -> Tensor:
    """Return the images averaged over a disc whose rim is antialiased."""
    radius *= _scale(x)
    reach = math.ceil(radius)
    places = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    distance = torch.hypot(places[:, None], places[None, :])
    return _filtered(x, (radius + 0.5 - distance).clamp(0, 1))


def _motion_blur(x: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """Return the images averaged along a line of random direction, `length` long."""
    length *= _scale(x)
    directions = _directions(x, generator)
    places = torch.linspace(-length / 2, length / 2, 2 * math.ceil(length) + 1)
    return torch.stack([_sampled(x, float(place) * directions) for place in places]).mean(0)


def _brightness(x: Tensor, amount: float, _: torch.Generator) -> Tensor:
    return x + amount


def _contrast(x: Tensor, kept: float, _: torch.Generator) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + kept * (x - mean)


def _fog(x: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Return the images mixed with bright clouds, the sum of four octaves of smoothed noise."""
    clouds = torch.zeros_like(x[:, :1])
    for octave in range(4):
        cells = _uniform((len(x), 1, 2 + 2**octave, 2 + 2**octave), x, generator)
        clouds += _enlarged(cells, x) / 2**octave
    clouds = 0.6 + 0.4 * clouds / clouds.amax((2, 3), keepdim=True)
    return (1 - density) * x + density * clouds


def _pixelate(x: Tensor, share: float, _: torch.Generator) -> Tensor:
    """Return the images as means over blocks, `share` as many along each side as there were pixels.

    Blocks need not be whole pixels: a pixel on a border is shared by area, so that no share shifts the image.
    """
    down, across = (_blocks(side, share).to(x) for side in x.shape[2:])
    return down @ x @ across.mT


def _jpeg(x: Tensor, quality: float, _: torch.Generator) -> Tensor:
    """Return the images after JPEG; three channels as colour, any other number as grey images."""
    pixels = x.mul(255).round().to(torch.uint8).cpu()
    if x.shape[1] == 3:
        planes = pixels.permute(0, 2, 3, 1).contiguous()
        decoded = torch.stack([_recompressed(plane, int(quality)) for plane in planes]).permute(0, 3, 1, 2)
    else:
        planes = pixels.flatten(0, 1)
        decoded = torch.stack([_recompressed(plane, int(quality)) for plane in planes]).view(pixels.shape)
    return decoded.to(x) / 255


def _elastic(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Return the images bent by a smooth random field of displacements, `amount` of the side each (RMS)."""
    field = _enlarged(_normal((len(x), 2, 4, 4), x, generator), x)
    field = field / field.square().mean((1, 2, 3), keepdim=True).sqrt()
    return _sampled(x, amount * min(x.shape[2:]) * field)


def _translate(x: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Return the images moved in a random direction by `amount` of their side, the border repeated."""
    return _sampled(x, amount * min(x.shape[2:]) * _directions(x, generator))


_KINDS: dict[str, tuple[_Corruption, Sequence[float]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "shot_noise": (_shot_noise, (100, 40, 18, 9, 4)),
    "impulse_noise": (_impulse_noise, (0.02, 0.05, 0.1, 0.17, 0.27)),
    "gaussian_blur": (_gaussian_blur, (0.45, 0.6, 0.8, 1.1, 1.6)),
    "defocus_blur": (_defocus_blur, (0.6, 0.8, 1.1, 1.5, 2.1)),
    "motion_blur": (_motion_blur, (1.2, 2.0, 3.0, 4.0, 5.5)),
    "brightness": (_brightness, (0.08, 0.16, 0.24, 0.34, 0.45)),
    "contrast": (_contrast, (0.75, 0.55, 0.4, 0.25, 0.12)),
    "fog": (_fog, (0.15, 0.28, 0.4, 0.52, 0.65)),
    "pixelate": (_pixelate, (0.85, 0.7, 0.55, 0.42, 0.3)),
    "jpeg": (_jpeg, (70, 40, 20, 10, 4)),
    "elastic": (_elastic, (0.02, 0.04, 0.06, 0.085, 0.12)),
    "translate": (_translate, (0.03, 0.06, 0.1, 0.14, 0.2)),
}
"""Each kind with the parameter of its five strengths; what the parameter is, its function's argument says."""

CORRUPTIONS = tuple(_KINDS)
"""Names of all kinds."""


def _scale(x: Tensor) -> float:
    """Return how many pixels of this image are one of an image of 32; never less than one."""
    return max(1.0, min(x.shape[2:]) / 32)


def _blocks(side: int, share: float) -> Tensor:
    """Return the (side, side) matrix that replaces a line of pixels by means over equal blocks."""
    count = max(round(share * side), 1)
    pixels, edges = torch.arange(side), torch.arange(count) * (side / count)
    stop = torch.minimum(pixels[None, :] + 1.0, edges[:, None] + side / count)
    overlap = (stop - torch.maximum(pixels[None, :].float(), edges[:, None])).clamp_min(0)
    return overlap.mT @ overlap * (count / side)


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, device=generator.device).to(like)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=generator.device).to(like)


def _directions(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return one random unit vector (x, y) per image, (batch, 2, 1, 1)."""
    angle = 2 * math.pi * _uniform((len(x), 1, 1, 1), x, generator)
    return torch.cat([angle.cos(), angle.sin()], 1)


def _enlarged(cells: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(cells, size=tuple(x.shape[2:]), mode="bilinear", align_corners=True)


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Return every channel filtered by a kernel (odd, odd), normalised here; the border is repeated."""
    channels, (down, across) = x.shape[1], (size // 2 for size in kernel.shape)
    weight = (kernel / kernel.sum()).expand(channels, 1, *kernel.shape)
    return F.conv2d(F.pad(x, (across, across, down, down), mode="replicate"), weight, groups=channels)


def _sampled(x: Tensor, shift: Tensor) -> Tensor:
    """Return every pixel taken bilinearly from `shift` (batch, 2, height or 1, width or 1) pixels away."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    columns = torch.arange(width, device=x.device, dtype=x.dtype)[None, :]
    across = 2 * (columns + shift[:, 0]) / (width - 1) - 1
    down = 2 * (rows + shift[:, 1]) / (height - 1) - 1
    grid = torch.stack([across.expand(-1, height, -1), down.expand(-1, -1, width)], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _recompressed(plane: Tensor, quality: int) -> Tensor:
    """Return one uint8 image, (height, width) or (height, width, 3), after a trip through JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(plane.numpy()).save(buffer, format="JPEG", quality=quality)
    buffer.seek(0)
    with Image.open(buffer) as image:
        return torch.from_numpy(np.array(image))
