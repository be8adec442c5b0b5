"""CIFAR-10 and CIFAR-100 in their official binary layout (Krizhevsky 2009); never the pickled one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from squint._checks import InputError
from squint.data.dataset import ImageData, check_label_range
from squint.data.download import RemoteFile, extract, fetch
from squint.data.tiles import find_tiles, read_tiles

SIDE = 32
_PIXEL_BYTES = 3 * SIDE * SIDE
_LARGEST_TEXT = 1 << 16


@dataclass(frozen=True)
class _Layout:
    """One set's files: names, and the classes that each of a record's label bytes may count (last: used)."""

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    names_file: str
    label_classes: tuple[int, ...]
    records_per_file: int
    archive: RemoteFile

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names_file)

    @property
    def record_bytes(self) -> int:
        return len(self.label_classes) + _PIXEL_BYTES

    def members(self) -> dict[str, int]:
        """Return the archive's members with the most bytes that each may have."""
        largest = self.record_bytes * self.records_per_file
        return {
            f"{self.folder}/{name}": _LARGEST_TEXT if name == self.names_file else largest
            for name in self.files
        }


CIFAR10 = _Layout(
    name="cifar10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    names_file="batches.meta.txt",
    label_classes=(10,),
    records_per_file=10_000,
    archive=RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        170_052_171,
    ),
)
CIFAR100 = _Layout(
    name="cifar100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    names_file="fine_label_names.txt",
    label_classes=(20, 100),
    records_per_file=50_000,
    archive=RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        168_513_733,
    ),
)


def cifar10(folder: Path, *, download: bool = True) -> tuple[ImageData, ImageData]:
    """Return (50,000 training images, 10,000 test images), uint8 (n, 3, 32, 32), ten classes.

    Args:
        folder: `cifar-10-batches-bin` itself, its parent, or a folder with (or with `cifar10/` with) the set
            as lossless tiles: `train_1..5.webp`, `test.webp` and `labels.json`, see `read_tiles`. Files that
            are there are read as they are; missing ones come from the set's archive, checksum checked.
        download: whether a missing archive may be downloaded.

    Raises:
        InputError: a file is missing, empty, not whole records, or holds a label out of range.
    """
    tiles = find_tiles(folder)
    if tiles is not None and not _holds_any(folder, CIFAR10):
        return read_tiles(tiles, "cifar10")
    return _load(folder, CIFAR10, download)


def cifar100(folder: Path, *, download: bool = True) -> tuple[ImageData, ImageData]:
    """Return (50,000 training images, 10,000 test images), uint8 (n, 3, 32, 32), the hundred fine classes.

    Args:
        folder: `cifar-100-binary` itself or its parent; otherwise as for `cifar10`.
        download: whether a missing archive may be downloaded.

    Raises:
        InputError: as for `cifar10`.
    """
    return _load(folder, CIFAR100, download)


def _holds_any(folder: Path, layout: _Layout) -> bool:
    return (folder / layout.folder).is_dir() or any((folder / name).is_file() for name in layout.files)


def _load(folder: Path, layout: _Layout, download: bool) -> tuple[ImageData, ImageData]:
    place = folder / layout.folder
    if not place.is_dir() and _holds_any(folder, layout):
        place = folder
    missing = [name for name in layout.files if not (place / name).is_file()]
    if missing:
        archive = folder / layout.archive.name
        if not download and not archive.is_file():
            raise InputError(
                f"no {layout.name} in {folder}: looked for {', '.join(missing)} in {place}; "
                "--data-dir names a folder that holds them"
            )
        extract(fetch(layout.archive, folder), layout.members(), place)
    names = _class_names(place / layout.names_file, layout.label_classes[-1])
    train = _read([place / name for name in layout.train], layout, names)
    return train, _read([place / layout.test], layout, names)


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    if path.stat().st_size > _LARGEST_TEXT:
        raise InputError(f"{path} has more than {_LARGEST_TEXT} bytes; expected {count} class names")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"{path} holds {len(set(names))} class names; expected {count}, one a line")
    return names


def _read(paths: list[Path], layout: _Layout, names: tuple[str, ...]) -> ImageData:
    parts = [_records(path, layout) for path in paths]
    used = len(layout.label_classes)
    pixels = np.concatenate([part[:, used:] for part in parts])
    labels = np.concatenate([part[:, used - 1] for part in parts]).astype(np.int64)
    images = torch.from_numpy(pixels).view(-1, 3, SIDE, SIDE)
    return ImageData(images, torch.from_numpy(labels), names, layout.name)


def _records(path: Path, layout: _Layout) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return (n, record bytes), after the file's length and every label byte have been checked."""
    size, record = path.stat().st_size, layout.record_bytes
    if size == 0:
        raise InputError(f"{path} is empty")
    if size % record or size > record * layout.records_per_file:
        raise InputError(
            f"{path} has {size} bytes; allowed: whole records of {record} bytes, "
            f"{layout.records_per_file} at most"
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
    for place, classes in enumerate(layout.label_classes):
        check_label_range(torch.from_numpy(records[:, place].astype(np.int64)), classes, path)
    return records
