"""A folder of images per class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from squint._checks import InputError, check_number, describe
from squint._memory import is_out_of_memory
from squint._random import derive_generator
from squint.data.dataset import ImageData, Splits, hold_out
from squint.data.pictures import GRAY_MODES, open_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class _Files:
    """The images of one part of the set, with the label of each."""

    paths: list[Path]
    labels: list[int]


def load_folder(
    path: str | Path,
    *,
    channels: int | None = None,
    size: int | tuple[int, int] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Return the images under `path/CLASS/*`, or under `path/train/CLASS/*` and `path/test/CLASS/*`.

    Classes are the sorted folder names; png, jpg, jpeg, webp and bmp files count, others and hidden ones do
    not. Images come in one order that depends on their number alone and mixes the classes: attacks take the
    first ones, which in the files' order would be of one class. Transparency is dropped.

    Args:
        path: the root folder.
        channels: 1 (gray) or 3 (RGB); None: 1 if every image is gray, else 3.
        size: pixels a side, or (height, width), to which images are resized (bilinear, antialiased); None:
            all images must have one size.
        validation: share (float) or number (int) of the training images to hold out, by class.
        test: the same for test images, from all images, where there is no `test` folder; the same images for
            every seed.
        seed: chooses the validation images.

    Raises:
        InputError: no such folder, fewer than two classes, an empty class, an image that is broken or of
            another size, or a class under `test` that `train` does not have. The message names the file.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(
            f"no folder {root}: a folder with one folder of images per class is needed; a relative path "
            "starts at --data-dir, or else where the command is run"
        )
    if channels not in (None, 1, 3):
        raise InputError(f"channels is {channels!r}; allowed: 1, 3 or None")
    has_parts = bool(_folders(root / "train"))
    source = root / "train" if has_parts else root
    names = [folder.name for folder in _folders(source)]
    if len(names) < 2:
        raise InputError(f"{source} has {len(names)} class folders; at least two are needed")
    parts = [_list_files(source, names)]
    if has_parts and (root / "test").is_dir():
        unknown = sorted({folder.name for folder in _folders(root / "test")} - set(names))
        if unknown:
            raise InputError(f"{root / 'test' / unknown[0]}: no class of this name under {source}")
        parts.append(_list_files(root / "test", names))
    gray, shape = _survey([file for part in parts for file in part.paths], _pair(size))
    if channels is not None:
        gray = channels == 1
    sets = [_mixed(_read(part, shape, gray, tuple(names), f"folder:{root.name}")) for part in parts]
    train, tested = sets if len(sets) == 2 else hold_out(sets[0], test, seed=0, purpose="test")
    train, held = hold_out(train, validation, seed=seed, purpose="validation")
    return Splits(train, held, tested)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_files(root: Path, names: list[str]) -> _Files:
    files = _Files([], [])
    for label, name in enumerate(names):
        entries = sorted((root / name).iterdir()) if (root / name).is_dir() else []
        found = [
            entry
            for entry in entries
            if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        ]
        if not found:
            raise InputError(f"{root / name} holds no images; looked for *{', *'.join(SUFFIXES)}")
        files.paths.extend(found)
        files.labels.extend([label] * len(found))
    return files


def _mixed(data: ImageData) -> ImageData:
    n = len(data)
    return data.subset(torch.randperm(n, generator=derive_generator(0, "folder", n)))


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise InputError(f"size is {size!r}; allowed: pixels a side, or (height, width)")
    height, width = sides
    check_number("size", height, 1, 2**14, whole=True)
    check_number("size", width, 1, 2**14, whole=True)
    return height, width


def _survey(paths: list[Path], size: tuple[int, int] | None) -> tuple[bool, tuple[int, int]]:
    """Return whether every image is gray and their (height, width), from the headers alone."""
    gray = True
    first: tuple[int, int] | None = None
    for path in paths:
        with open_picture(path) as image:
            gray = gray and image.mode in GRAY_MODES
            found = (image.height, image.width)
        first = first or found
        if size is None and found != first:
            raise InputError(
                f"{path} is {found[0]}x{found[1]} pixels (height x width), the images before it "
                f"{first[0]}x{first[1]}; allowed: one size, or folder:PATH@32 (size=32) to resize them"
            )
    assert first is not None
    return gray, size or first


def _read(files: _Files, size: tuple[int, int], gray: bool, names: tuple[str, ...], name: str) -> ImageData:
    shape = len(files.paths), 1 if gray else 3, *size
    try:
        images = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"{len(files.paths)} images of {size[0]}x{size[1]} pixels (the first: {files.paths[0]}) take "
            f"{math.prod(shape) / 2**30:.1f} GiB, which do not fit into memory; allowed: a smaller size"
        ) from None
    for row, path in zip(images, files.paths, strict=True):
        row.copy_(_decode(path, size, gray))
    return ImageData(images, torch.tensor(files.labels), names, name)


def _decode(path: Path, size: tuple[int, int], gray: bool) -> Tensor:
    with open_picture(path) as image:
        try:
            pixels = image.convert("L" if gray else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{path} cannot be decoded: {describe(error)}") from error
    height, width = size
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(pixels).reshape(height, width, -1)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())
