"""Image files, opened with a limit on their size."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from squint._checks import InputError, describe

MAX_PIXELS = 2**24
"""Most pixels that a picture may have: 4096 x 4096."""
GRAY_MODES = frozenset({"1", "L", "LA", "La"})
"""Pillow's names for kinds of pixels without colour, of 8 bits a channel or fewer."""
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})


def open_picture(path: Path) -> Image.Image:
    """Return an image whose header has been read and whose pixels have not.

    Raises:
        squint.InputError: no image, one that declares more than `MAX_PIXELS`, or one of more than 8 bits a
            channel, whose pixels Pillow would clip at 255.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with warnings.catch_warnings():
            # Our own limit is lower than that of Pillow's warning.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {describe(error)}") from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise InputError(
            f"{path} declares {picture.width}x{picture.height} pixels; allowed: up to {MAX_PIXELS:,}"
        )
    if picture.mode not in GRAY_MODES | _COLOUR_MODES:
        picture.close()
        raise InputError(
            f"{path} has pixels of kind {picture.mode!r}; allowed: 8 bits a channel, gray or colour"
        )
    return picture
