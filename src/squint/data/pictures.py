"""Image files, opened with a limit on their size."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from squint._checks import InputError, describe

MAX_PIXELS = 2**24
"""Most pixels that a picture may have: 4096 x 4096."""


def open_picture(path: Path) -> Image.Image:
    """Return an image whose header has been read and whose pixels have not.

    Raises:
        squint.InputError: no image, or one that declares more than `MAX_PIXELS`.
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
    return picture
