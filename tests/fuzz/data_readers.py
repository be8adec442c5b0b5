"""Readers of data sets and pictures, each with files that it reads."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from squint.data.cifar import CIFAR10, CIFAR100, cifar10, cifar100
from squint.data.fashion_mnist import FILES, fashion_mnist
from squint.data.folder import load_folder
from squint.export.onnx import read_images


@dataclass(frozen=True)
class Reader:
    """A reader and the files that it reads.

    Attributes:
        name: what it is called.
        folder: holds the files.
        files: those of them that are damaged.
        read: reads them; it may raise nothing but `InputError` and `InputTypeError`.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    read: Callable[[], object]


def cifar_files(folder: Path) -> list[Reader]:
    found = []
    for layout, load in ((CIFAR10, cifar10), (CIFAR100, cifar100)):
        place = folder / layout.folder
        place.mkdir()
        for name in (*layout.train, layout.test):
            (place / name).write_bytes(bytes(layout.record_bytes * 2))
        names = "\n".join(f"class {k}" for k in range(layout.label_classes[-1]))
        (place / layout.names_file).write_text(names)
        files = tuple(sorted(place.iterdir()))
        found.append(Reader(layout.name, place, files, partial(load, place, download=False)))
    return found


def fashion(folder: Path) -> list[Reader]:
    place = folder / "fashion-mnist"
    place.mkdir()
    for name in FILES:
        pictures = "images" in name
        header = struct.pack(">IIII", 0x803, 2, 28, 28) if pictures else struct.pack(">II", 0x801, 2)
        (place / name).write_bytes(gzip.compress(header + bytes(2 * 28 * 28 if pictures else 2)))
    files = tuple(sorted(place.iterdir()))
    return [Reader("fashion-mnist", place, files, lambda: fashion_mnist(place, download=False))]


def pictures(folder: Path) -> list[Reader]:
    place = folder / "pictures"
    for label, name in enumerate("ab"):
        (place / name).mkdir(parents=True)
        for k, ending in enumerate(("png", "jpg", "webp", "bmp")):
            Image.new("RGB", (8, 8), (60 * label, 50 * k, 100)).save(place / name / f"{k}.{ending}")
    files = tuple(sorted((place / "a").iterdir()))

    def read() -> None:
        load_folder(place)

    return [
        Reader("folder", place, files, read),
        Reader("images", place, files, lambda: read_images(files, 3)),
    ]


def tiles(folder: Path) -> list[Reader]:
    place = folder / "tiles"
    place.mkdir()
    sheets = [*(f"train_{i}" for i in range(1, 6)), "test"]
    for sheet in sheets:
        Image.new("RGB", (64, 32), (1, 2, 3)).save(place / f"{sheet}.webp", lossless=True)
    plain = {"classes": [f"class {k}" for k in range(10)], **{sheet: [0, 1] for sheet in sheets}}
    (place / "labels.json").write_text(json.dumps(plain))
    files = (place / "labels.json", place / "test.webp")
    return [Reader("tiles", place, files, lambda: cifar10(place, download=False))]
