"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from squint._checks import InputError, describe

MAX_JSON_BYTES = 256 * 2**20


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: a crash leaves the old content, never half of the new.

    Raises:
        squint.InputError: the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; results are for reading.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON, whole or not at all.

    Raises:
        squint.InputError: the file cannot be written, or the content holds NaN, infinity or objects.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"cannot write {path}: {describe(error)}") from None
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Return the plain data of a JSON file.

    Raises:
        squint.InputError: the file is missing, unreadable, larger than 256 MiB or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; not a file of squint's")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {describe(error)}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text metadata as one safetensors file, whole or not at all.

    Raises:
        squint.InputError: the file cannot be written, or something is no tensor that the format holds.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            raise InputError(f"cannot write {path}: {name} is no tensor with values of its own")
    # Clones: tensors that share memory are stored one by one.
    held = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    try:
        content = safetensors.torch.save(held, dict(metadata))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot write {path}: {describe(error)}") from None
    write_bytes(path, content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, on the CPU.

    Raises:
        squint.InputError: the file is missing, truncated or of another format.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is no whole safetensors file: {describe(error)}") from None
