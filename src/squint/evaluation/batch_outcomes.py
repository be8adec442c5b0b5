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
from squint.attacks.gradients import AnyModel, Units, nan_reported
from squint.attacks.modes import evaluation_mode
from squint.ensemble import is_foreign
from squint.evaluation.arrays import Array, read_npz, write_npz
from squint.evaluation.provenance import maker

FORMAT = 3
CONFIGURATION = "configuration.json"
_OF_DATA = ("data", "n")
"""Entries of a configuration that say which images, and how many."""
_SHOWN = 4
"""Images on which a model's outputs are looked at, and as many of noise."""
_TORCH = "torch.nn."
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def digest(*parts: object) -> str:
    """Return a hash of tensors, modules and plain values; equal contents give equal hashes.

    A module counts with its type, its printed form (which names every quantizer's settings), its state, and
    what torch's own layers do not print of their settings. Of another callable only the type counts:
    `model_digest` looks at what it does.
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
            for name, layer in part.named_modules():
                if type(layer).__module__.startswith(_TORCH):
                    found.update(f"{name}:{_settings(layer)}".encode())
        elif isinstance(part, str | int | float | bool | None):
            found.update(repr(part).encode())
        else:
            found.update(type(part).__qualname__.encode())
        found.update(b"\x1f")
    return found.hexdigest()


def model_digest(model: AnyModel, images: Tensor, device: torch.device) -> str:
    """Return a hash by which kept outcomes of a model are told from another's.

    Networks of torch's and squint's own layers are their `digest`, on any machine. What others do is not in
    their state: of them, outputs count too, on some of the images and on noise, under fixed seeds. A module
    whose outputs differ from call to call is its `digest` alone.

    Args:
        model: a network, or any callable returning logits; left as it was found.
        images: images (n, ...) in [0, 1].
        device: of the model.

    Raises:
        squint.InputError: the model is a function or object, no module, that cannot be made to repeat its
            outputs.
    """
    if isinstance(model, nn.Module) and all(_is_known(part) for part in model.modules()):
        return digest(model)
    shown = images[:_SHOWN]
    dots = torch.rand(shown.shape, generator=torch.Generator().manual_seed(0), dtype=shown.dtype)
    x = torch.cat([shown, dots.to(shown.device)]).to(device)
    units = Units(model, torch.zeros(len(x), dtype=torch.int64, device=device), 2)
    # Draws of the model's own from torch's generator are not to be missing later.
    with evaluation_mode(model), nan_reported(), torch.random.fork_rng(devices=[]):
        first, again = (digest(units.logits(x, 0).float()) for _ in range(2))
    if first == again:
        return digest(model, first)
    if isinstance(model, nn.Module):
        return digest(model)
    raise InputError(
        f"the model is a {type(model).__name__} whose outputs differ between two calls under one seed, so "
        "its outcomes cannot be kept in a folder; allowed: no folder, a torch.nn.Module, or noise from "
        "member_logits(generator=...)"
    )


def _is_known(part: nn.Module) -> bool:
    hooks = any(getattr(part, name) for name in _HOOKS)
    return not (is_foreign(part) or hooks or "forward" in vars(part))


def _settings(layer: nn.Module) -> str:
    """Return the plain public attributes of a layer, in order of their names."""
    plain = (int, float, bool, str, tuple, type(None))
    held = {key: value for key, value in vars(layer).items() if isinstance(value, plain)}
    return repr(sorted((key, value) for key, value in held.items() if key[0] != "_" and key != "training"))


class BatchOutcomes:
    """A folder with one npz and one JSON file per batch, and the configuration that made them.

    Batches have numbers; parts of another kind have names, of characters that files may have.

    Args:
        folder: created if it is missing.
        configuration: plain data; another configuration's folder is refused.
        grown: images (n, ...) and labels (n,) of which the configuration has the `digest` as `data`, and n: a
            folder of the first of them is gone on with, and is then a folder of all. None: no folder grows.

    Raises:
        squint.InputError: the folder belongs to another configuration or cannot be written.
    """

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any], grown: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.folder = folder
        fixed = dict(configuration) if grown is None else without_data(configuration)
        self.hash = digest(json.dumps(fixed, sort_keys=True))
        wanted = {"format": FORMAT, "hash": self.hash, "configuration": dict(configuration)}
        place = folder / CONFIGURATION
        if not place.exists():
            write_json(place, wanted)
            return
        found = read_json(place)
        held = found.get("configuration") if isinstance(found, dict) else None
        if not isinstance(held, dict) or found.get("format") != FORMAT:
            raise InputError(f"{place} is no configuration of format {FORMAT}; choose another folder")
        plain = json.loads(json.dumps(dict(configuration)))
        changed = [key for key in sorted({*plain, *held}) if plain.get(key) != held.get(key)]
        same = found.get("hash") == self.hash
        if same and (grown is None or not changed):
            return
        if same and grown is not None and _is_of_first(held, *grown):
            write_json(place, wanted)
            return
        more = f"; or go on with the {held.get('n')} images that it is of, or more" if same else ""
        raise InputError(
            f"{folder} holds outcomes of another configuration, which differs in "
            f"{', '.join(changed) or 'its hash'}; choose another folder, or remove it{more}"
        )

    def load(self, batch: int | str) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """Return a finished batch's arrays and plain data, or None where it is still to be done."""
        place = self._place(batch, "json")
        if not place.exists():
            return None
        again = f"remove {place} to have {_called(batch)} attacked again"
        try:
            plain = read_json(place)
            if not isinstance(plain, dict) or plain.get("hash") != self.hash:
                raise InputError(f"{place} belongs to another configuration")
            if plain.get("batch", batch) != batch or not isinstance(plain.get("outcome"), dict):
                raise InputError(f"{place} does not hold the outcome of {_called(batch)}")
            arrays = read_npz(self._place(batch, "npz"))
            if plain.get("arrays", digest_of(arrays)) != digest_of(arrays):
                raise InputError(f"{self._place(batch, 'npz')} is not the file that was written with {place}")
        except InputError as error:
            raise InputError(f"{error}; {again}") from None
        return arrays, plain["outcome"]

    def save(self, batch: int | str, arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> None:
        """Write one batch; its JSON file comes last, and only with it does the batch count as done."""
        write_npz(self._place(batch, "npz"), arrays)
        note = {"hash": self.hash, "batch": batch, "arrays": digest_of(arrays), "by": maker()}
        write_json(self._place(batch, "json"), {**note, "outcome": dict(plain)})

    def _place(self, batch: int | str, ending: str) -> Path:
        name = f"batch-{batch:05d}" if isinstance(batch, int) else batch
        return self.folder / f"{name}.{ending}"


def without_data(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that say which images it is of."""
    return {key: value for key, value in configuration.items() if key not in _OF_DATA}


def _is_of_first(held: Mapping[str, Any], images: Tensor, labels: Tensor) -> bool:
    """Return whether a folder's configuration is of fewer images, which are the first of these."""
    n = held.get("n")
    return type(n) is int and 0 < n < len(images) and held.get("data") == digest(images[:n], labels[:n])


def _called(batch: int | str) -> str:
    return f"batch {batch}" if isinstance(batch, int) else batch


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
