"""Fashion-MNIST in its official layout: four gzipped idx files (Xiao, Rasul and Vollgraf 2017)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from squint._checks import InputError, describe
from squint.data.dataset import ImageData, check_label_range
from squint.data.download import RemoteFile, fetch

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FOLDER = "fashion-mnist"
SIDE = 28

_HOME = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
FILES = {
    name: RemoteFile(_HOME + name, sha256, size)
    for name, sha256, size in (
        (
            "train-images-idx3-ubyte.gz",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            26_421_880,
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            29_515,
        ),
        (
            "t10k-images-idx3-ubyte.gz",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            4_422_102,
        ),
        (
            "t10k-labels-idx1-ubyte.gz",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            5_148,
        ),
    )
}
"""The set's four files in its own repository; sizes and checksums are those of the published files."""

# Deflate cannot shrink anything by more than this, so a larger claim in a header is false.
_LARGEST_RATIO = 1032


def fashion_mnist(folder: Path, *, download: bool = True) -> tuple[ImageData, ImageData]:
    """Return (60,000 training images, 10,000 test images), uint8 (n, 1, 28, 28).

    Args:
        folder: holds the four `.gz` files, or `fashion-mnist/` with them; files that are there are read as
            they are (gzip's own checksum is checked), missing ones are downloaded to the same place.
        download: whether missing files may be downloaded.

    Raises:
        InputError: a file is missing, empty, truncated, too long, of another format or size.
    """
    place = folder / FOLDER
    if not place.is_dir() and any((folder / name).is_file() for name in FILES):
        place = folder
    missing = [name for name in FILES if not (place / name).is_file()]
    if missing and not download:
        raise InputError(
            f"no Fashion-MNIST in {folder}: looked for {', '.join(missing)} in {place}; "
            "--data-dir names a folder that holds them"
        )
    for name in missing:
        fetch(FILES[name], place)
    return _part(place, "train"), _part(place, "t10k")


def _part(folder: Path, prefix: str) -> ImageData:
    image_file = folder / f"{prefix}-images-idx3-ubyte.gz"
    label_file = folder / f"{prefix}-labels-idx1-ubyte.gz"
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1).long()
    if tuple(images.shape[1:]) != (SIDE, SIDE):
        raise InputError(f"{image_file} holds images of {tuple(images.shape[1:])}; expected {(SIDE, SIDE)}")
    if len(images) != len(labels):
        raise InputError(f"{label_file} holds {len(labels)} labels for {len(images)} images")
    check_label_range(labels, len(CLASS_NAMES), label_file)
    return ImageData(images[:, None], labels, CLASS_NAMES, FOLDER)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the uint8 tensor in a gzipped idx file.

    The header's sizes are compared with the file's length before anything of that size is allocated, and
    no more is decompressed than the header declares and one byte.

    Args:
        path: the `.gz` file.
        dimensions: how many the file must have; 3 for images, 1 for labels.

    Raises:
        InputError: the file is empty, truncated, too long, damaged, or not idx of this many dimensions.
    """
    try:
        with gzip.open(path, "rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            shape = _shape(path, header, dimensions)
            size = math.prod(shape)
            if size > path.stat().st_size * _LARGEST_RATIO:
                raise InputError(f"{path} declares shape {shape}, more than a file of its length can hold")
            content = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as gzip: {describe(error)}") from error
    if len(content) != size:
        fault = "is truncated" if len(content) < size else "is too long"
        raise InputError(f"{path} {fault}: it declares shape {shape}, {size} bytes after the header")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    if not header:
        raise InputError(f"{path} is empty")
    if len(header) < 4 + 4 * dimensions:
        raise InputError(f"{path} is truncated inside its header")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    expected = 0x0800 + dimensions
    if magic != expected:
        raise InputError(
            f"{path} has magic number 0x{magic:08x}; expected 0x{expected:08x} (idx, big-endian)"
        )
    if 0 in shape:
        raise InputError(f"{path} declares shape {tuple(shape)}: it holds nothing")
    return tuple(shape)
