"""What attacks on detectors left, kept file by file, so that a long evaluation can go on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from squint._checks import InputError
from squint._files import read_tensors, write_tensors

_KEY = "squint_attacked"


@dataclass(frozen=True)
class KeptPoints:
    """A folder with one file per finished attack, whole or absent.

    Attributes:
        folder: where the files lie; made when it is needed.
        reuse: whether files that are there already are read; False: every attack runs and replaces its file.
    """

    folder: Path
    reuse: bool = False

    def read(self, names: tuple[str, ...], settings: str) -> tuple[Tensor, float] | None:
        """Return images and seconds of the attack of these names, or None unless `settings` made its file."""
        path = self._path(names)
        if not self.reuse or not path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(path)
            held: dict[str, Any] = json.loads(metadata[_KEY])
            return (tensors["images"], float(held["seconds"])) if held["settings"] == settings else None
        except (InputError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError):
            # No file of ours, or a damaged one: the attack runs again and replaces it.
            return None

    def write(self, names: tuple[str, ...], settings: str, images: Tensor, seconds: float) -> None:
        """Keep the images that an attack left."""
        held = json.dumps({"settings": settings, "seconds": seconds})
        write_tensors(self._path(names), {"images": images}, {_KEY: held})

    def _path(self, names: tuple[str, ...]) -> Path:
        return self.folder / f"{'.'.join(name.replace('/', '-') for name in names)}.safetensors"


def digest(settings: Mapping[str, object], *tensors: Tensor) -> str:
    """Return a hash of everything that an attack's outcome depends on."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        held = tensor.detach().cpu().contiguous()
        found.update(f"{held.dtype} {tuple(held.shape)}".encode())
        found.update(held.numpy().tobytes())
    return found.hexdigest()[:32]
