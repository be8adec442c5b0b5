"""Outcomes of a long evaluation, batch by batch in a folder, so that it can be taken up again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from squint._checks import InputError
from squint._files import read_json, write_json
from squint.evaluation.arrays import Array, read_npz, write_npz

FORMAT = 1
CONFIGURATION = "configuration.json"


def digest(*parts: object) -> str:
    """Return a hash of tensors, modules and plain values; equal contents give equal hashes.

    A module counts with its type, its printed form (which names every quantizer's settings) and its state.
    """
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = part.detach().cpu().contiguous()
            found.update(f"{array.dtype}{tuple(array.shape)}".encode())
            found.update(array.view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, nn.Module):
            found.update(repr(part).encode())
            for name, tensor in part.state_dict().items():
                found.update(f"{name}:{digest(tensor)}".encode())
        elif isinstance(part, str | int | float | bool | None):
            found.update(repr(part).encode())
        else:
            # Other callables cannot be looked into: their kind is all that a hash can hold.
            found.update(type(part).__qualname__.encode())
        found.update(b"\x1f")
    return found.hexdigest()


class BatchOutcomes:
    """A folder with one npz and one JSON file per batch, and the configuration that made them.

    Args:
        folder: created if it is missing.
        configuration: plain data; another configuration's folder is refused.

    Raises:
        squint.InputError: the folder belongs to another configuration or cannot be written.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder = folder
        self.hash = digest(json.dumps(configuration, sort_keys=True))
        wanted = {"format": FORMAT, "hash": self.hash, "configuration": dict(configuration)}
        place = folder / CONFIGURATION
        if not place.exists():
            write_json(place, wanted)
            return
        found = read_json(place)
        held = found.get("configuration") if isinstance(found, dict) else None
        if not isinstance(held, dict) or found.get("format") != FORMAT:
            raise InputError(f"{place} is no configuration of format {FORMAT}; choose another folder")
        if found.get("hash") != self.hash:
            plain = json.loads(json.dumps(dict(configuration)))
            changed = [key for key in sorted({*plain, *held}) if plain.get(key) != held.get(key)]
            raise InputError(
                f"{folder} holds outcomes of another configuration, which differs in "
                f"{', '.join(changed) or 'its hash'}; choose another folder, or remove it"
            )

    def load(self, batch: int) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """Return a finished batch's arrays and plain data, or None where it is still to be done."""
        place = self._place(batch, "json")
        if not place.exists():
            return None
        again = f"remove {place} to have batch {batch} attacked again"
        try:
            plain = read_json(place)
            if not isinstance(plain, dict) or plain.get("hash") != self.hash:
                raise InputError(f"{place} belongs to another configuration")
            if plain.get("batch", batch) != batch or not isinstance(plain.get("outcome"), dict):
                raise InputError(f"{place} does not hold the outcome of batch {batch}")
            arrays = read_npz(self._place(batch, "npz"))
            if plain.get("arrays", digest_of(arrays)) != digest_of(arrays):
                raise InputError(f"{self._place(batch, 'npz')} is not the file that was written with {place}")
        except InputError as error:
            raise InputError(f"{error}; {again}") from None
        return arrays, plain["outcome"]

    def save(self, batch: int, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Write one batch; its JSON file comes last, and only with it does the batch count as done."""
        write_npz(self._place(batch, "npz"), arrays)
        note = {"hash": self.hash, "batch": batch, "arrays": digest_of(arrays), "outcome": dict(plain)}
        write_json(self._place(batch, "json"), note)

    def _place(self, batch: int, ending: str) -> Path:
        return self.folder / f"batch-{batch:05d}.{ending}"


def digest_of(arrays: Mapping[str, Array]) -> str:
    """Return a hash of named arrays: their names, kinds, shapes and contents."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        found.update(f"{name}\x1f{array.dtype}{array.shape}\x1f".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def as_array(values: Tensor) -> Array:
    """Return a tensor as a numpy array on the CPU."""
    array: Array = np.asarray(values.detach().cpu().numpy())
    return array
