"""Data sets by name."""

from __future__ import annotations

import re
from pathlib import Path

from squint._checks import InputError, check_choice
from squint.data.cifar import cifar10, cifar100
from squint.data.dataset import Splits, hold_out
from squint.data.digits import VALIDATION_IMAGES, digits
from squint.data.download import default_folder
from squint.data.fashion_mnist import fashion_mnist
from squint.data.folder import load_folder

VALIDATION_SHARE = 0.1
FOLDER_PREFIX = "folder:"

_LOADERS = {"fashion-mnist": fashion_mnist, "cifar10": cifar10, "cifar100": cifar100}
NAMES = ("digits", *_LOADERS)
"""The sets that have a name."""
CHOICES = (*NAMES, f"{FOLDER_PREFIX}PATH", f"{FOLDER_PREFIX}PATH@SIDE")
"""How a set may be named."""
IMAGE_SHAPES = {
    "digits": (1, 8, 8),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
}
"""Channels, height and width of each of these sets' images."""
_RESIZED = re.compile(r"(.+)@(\d{1,6})(?:x(\d{1,6}))?")
"""What follows `folder:` where images are resized: PATH@SIDE or PATH@HEIGHTxWIDTH."""


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    validation: float | None = None,
    seed: int = 0,
    download: bool = True,
) -> Splits:
    """Return a set's training, validation and test images.

    The test images are the set's own and the same for every seed. Validation images are held out of the
    training images, stratified by class; which ones depends on `seed` and the set alone.

    Args:
        name: `digits`, `fashion-mnist`, `cifar10`, `cifar100`, or `folder:PATH` for a folder of images per
            class (`load_folder`, with its defaults; a relative path starts at `data_dir` where one is given).
            `folder:PATH@32` resizes them to 32 pixels a side, `folder:PATH@24x32` to that height and width.
        data_dir: folder with the files in their official layout; downloads go there too. None: the
            platform's cache folder. Not used by `digits`.
        validation: number of images (int, 0 for none) or share of the training images (float). None: a
            tenth, and 200 for `digits`.
        seed: chooses the validation images.
        download: whether files that are missing may be downloaded from the set's own home.

    Raises:
        InputError: an unknown name, or files that are missing or broken; the message names them.
    """
    if name.startswith(FOLDER_PREFIX):
        path, size = _named_folder(name.removeprefix(FOLDER_PREFIX), Path(data_dir or ".").expanduser())
        share = VALIDATION_SHARE if validation is None else validation
        return load_folder(path, size=size, validation=share, seed=seed)
    check_choice("data set", name, CHOICES)
    if name == "digits":
        return digits(validation=VALIDATION_IMAGES if validation is None else validation, seed=seed)
    folder = default_folder() if data_dir is None else Path(data_dir).expanduser()
    everything, test = _LOADERS[name](folder, download=download)
    amount = VALIDATION_SHARE if validation is None else validation
    train, held = hold_out(everything, amount, seed=seed, purpose="validation")
    return Splits(train, held, test)


def _named_folder(words: str, base: Path) -> tuple[Path, tuple[int, int] | None]:
    """Return the folder, and to what its images are resized, where there is none of that very name."""
    path = base / Path(words).expanduser()
    found = _RESIZED.fullmatch(words)
    if path.is_dir():
        return path, None
    if found is None:
        before, at, size = words.rpartition("@")
        if at and before and (base / Path(before).expanduser()).is_dir():
            raise InputError(
                f"the size of {before} is {size!r}; allowed: PATH@32, or PATH@24x32 (height x width)"
            )
        return path, None
    height = int(found[2])
    return base / Path(found[1]).expanduser(), (height, int(found[3] or height))
