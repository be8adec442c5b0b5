"""Parts of preflight and active tests in a folder: what is stopped goes on with the part it was at."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from squint._checks import InputError
from squint.evaluation.batch_outcomes import BatchOutcomes, as_array, digest

_ARRAY = "values"


class KeptParts:
    """Tensors by what they are of, each computed once: in a folder, or for the moment where there is none.

    Args:
        folder: of one evaluation's parts alone; None keeps nothing.
        configuration: returns, as plain data, what the parts depend on; asked where there is a folder.

    Raises:
        squint.InputError: the folder holds another configuration's parts, or cannot be written.
    """

    def __init__(
        self, folder: Path | None = None, configuration: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        self._store = None if folder is None else BatchOutcomes(folder, configuration())

    def part(self, compute: Callable[[], Tensor], *keys: object, of: Sequence[Tensor] = ()) -> Tensor:
        """Return a part from its files, or as `compute` gives it, which is then kept; on the CPU.

        Args:
            compute: gives the part.
            keys: what it is of: text and numbers, distinct from those of every other part.
            of: images and the like that it is of; of others a part has another name.

        Raises:
            squint.InputError: the files are damaged or another part's.
        """
        if self._store is None:
            return compute().cpu()
        name = _name(keys, of)
        found = self._store.load(name)
        if found is not None:
            if _ARRAY not in found[0]:
                raise InputError(
                    f"{name} in {self._store.folder} holds no part of a test: remove that folder"
                )
            return torch.from_numpy(found[0][_ARRAY])
        values = compute()
        self._store.save(name, {_ARRAY: as_array(values)}, {})
        return values.cpu()


def _name(keys: tuple[object, ...], of: Sequence[Tensor]) -> str:
    """Return a file's name that people can read and that no other keys and images have."""
    text = " ".join(str(key) for key in keys)
    return f"{re.sub('[^a-z0-9.]+', '-', text.lower())[:60]}-{digest(text, *of)[:16]}"
