"""CIFAR-10 as lossless tiles: a few large WebP sheets of 32x32 pictures, a quarter smaller than the archive.

A folder holds `train_1.webp` .. `train_5.webp`, `test.webp` and `labels.json`. A sheet is a grid of 32x32 RGB
tiles, row by row in the set's own order (100 x 100 of them in the full set); `labels.json` maps each sheet's
name to its labels in the same order, and `classes` to the class names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from squint._checks import InputError, describe
from squint._files import read_text
from squint.data.dataset import ImageData, check_label_range
from squint.data.pictures import open_picture

SIDE = 32
TRAIN_SHEETS = tuple(f"train_{i}" for i in range(1, 6))
TEST_SHEET = "test"
LABELS_FILE = "labels.json"
_LARGEST_JSON = 1 << 24


def find_tiles(folder: Path) -> Path | None:
    """Return the folder that holds `labels.json` and a sheet: `folder`, its `cifar10/`, or None."""
    for place in (folder, folder / "cifar10"):
        if (place / LABELS_FILE).is_file() and any(place.glob("*.webp")):
            return place
    return None


def read_tiles(folder: Path, name: str) -> tuple[ImageData, ImageData]:
    """Return (training images, test images), uint8 (n, 3, 32, 32), from lossless tiles.

    Args:
        folder: holds the sheets and `labels.json`.
        name: what the set is called.

    Raises:
        InputError: a file is missing or broken, a sheet lacks one tile per label, a label is out of range.
    """
    content = _read_json(folder / LABELS_FILE)
    classes = content.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) for c in classes):
        raise InputError(f"{folder / LABELS_FILE}: classes must be a list of class names")
    parts = [_sheet(folder, sheet, content.get(sheet), len(classes)) for sheet in (*TRAIN_SHEETS, TEST_SHEET)]
    images, labels = torch.cat([p[0] for p in parts[:-1]]), torch.cat([p[1] for p in parts[:-1]])
    return ImageData(images, labels, tuple(classes), name), ImageData(*parts[-1], tuple(classes), name)


def _read_json(path: Path) -> dict[str, Any]:
    text = read_text(path, _LARGEST_JSON)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {describe(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold an object with classes and one list of labels per sheet")
    return content


def _sheet(folder: Path, sheet: str, listed: Any, num_classes: int) -> tuple[Tensor, Tensor]:
    if not isinstance(listed, list) or not listed or not all(type(label) is int for label in listed):
        raise InputError(f"{folder / LABELS_FILE}: {sheet} must be a list of labels, whole numbers")
    # Sixteen bits hold every sensible label; clipping keeps huge numbers out of range instead of overflowing.
    labels = torch.tensor([max(min(label, 2**15), -1) for label in listed], dtype=torch.int64)
    check_label_range(labels, num_classes, f"{folder / LABELS_FILE}, {sheet}")
    path = folder / f"{sheet}.webp"
    if not path.is_file():
        raise InputError(f"no {path.name} in {folder}: a set of tiles needs every sheet")
    try:
        with open_picture(path) as picture:
            width, height = picture.size
            # Compared before decoding: a sheet that is larger than its labels is never decoded.
            if width % SIDE or height % SIDE or (width // SIDE) * (height // SIDE) != len(labels):
                raise InputError(
                    f"{path} has {width}x{height} pixels; needed: 32x32 for each of {len(labels)} labels"
                )
            pixels = np.asarray(picture.convert("RGB"))
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image: {describe(error)}") from error
    rows, columns = height // SIDE, width // SIDE
    tiles = pixels.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 4, 1, 3)
    images = np.ascontiguousarray(tiles).reshape(-1, 3, SIDE, SIDE)
    return torch.from_numpy(images), labels
