"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from squint._checks import InputError, describe

MAX_JSON_BYTES = 16 * 2**20
MAX_BRACKETS = 500_000
"""Parsed, a pair of brackets takes thirty times its bytes; no file of squint's own comes near."""
MAX_COLONS = 800_000
"""Names in JSON are hashed one by one: a million takes a second."""
MAX_TENSORS = 50_000
MAX_HEADER_BYTES = 16 * 2**20
"""Longest header of a file of tensors: names, shapes and metadata; a thousand tensors need a hundredth."""
MAX_METADATA_BYTES = 4 * 2**20
"""Longest text in a header; that of a checkpoint after a thousand epochs has one MiB."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none: a crash or a power cut leaves the old content, never half of the new.

    When this returns, the file and its name are on the disk.

    Raises:
        squint.InputError: the folder cannot be written, the disk is full or fails.
    """
    temporary = None
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"cannot write {path}: it is there and is no plain file")
        # What a link leads to is replaced, not the link.
        path = Path(os.path.realpath(path)) if path.is_symlink() else path
        _make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(handle, left) :]
            # mkstemp makes files for the owner alone; results are for reading.
            os.fchmod(handle, 0o644)
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            # Where even this fails, the next run clears it away.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def put_in_place(written: Path, path: Path) -> None:
    """Rename a file that was written beside its place; its content is on the disk before its name is.

    Raises:
        OSError: the disk is full or fails.
    """
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(path)
    _sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file that may be missing.

    Raises:
        squint.InputError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {error.strerror or error}") from error


def remove_folder(path: Path) -> None:
    """Remove a folder that may be missing; what stayed would pass for the next run's.

    Raises:
        squint.InputError: it cannot be removed.
    """
    if not path.exists():
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {error.strerror or error}") from None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes began to write below a folder; nobody else may be writing there.

    Raises:
        squint.InputError: the folder cannot be read, or a file in it cannot be removed.
    """
    try:
        # The names that `mkstemp` makes for `write_bytes`.
        found = [entry for entry in folder.rglob(".*.????????.tmp") if entry.is_file()]
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}") from error
    for entry in found:
        remove_file(entry)


def check_output(path: Path | None) -> None:
    """Raise `InputError` where a file could not be written at the end of long work; None is no file.

    Looks at what is there, and makes nothing.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"output is {path}, which is a folder; allowed: a file")
    place = next(each for each in path.absolute().parents if each.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: {place} is not a folder that can be written into")


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it; their names are on the disk afterwards."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names; without it a power cut may undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot flush folders and say so.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


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


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a plain file; no more than `limit` bytes are ever held.

    Raises:
        squint.InputError: the file is missing, unreadable, no plain file or longer than `limit`.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_file():
        raise InputError(f"{path} is not readable: no plain file")
    try:
        with path.open("rb") as file:
            # A read of n bytes holds n bytes at once, however short the file.
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise InputError(f"{path} is not readable: {error.strerror or error}") from None
    if len(content) > limit:
        raise InputError(f"{path} is larger than {limit >> 20} MiB; not a file of squint's")
    return content


def read_text(path: Path, limit: int | None = None) -> str:
    """Return the text of a UTF-8 file of at most `limit` bytes; None: 16 MiB.

    Raises:
        squint.InputError: see `read_bytes`; or it is not UTF-8.
    """
    try:
        text = read_bytes(path, MAX_JSON_BYTES if limit is None else limit).decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not readable: it is not UTF-8 text") from None
    _check_structure(path, text)
    return text


def _check_structure(path: Path, text: str) -> None:
    """Refuse text that would take much more time and memory as JSON than its length tells."""
    for most, signs, what in ((MAX_BRACKETS, "[{", "brackets"), (MAX_COLONS, ":", "colons")):
        if sum(map(text.count, signs)) > most:
            raise InputError(f"{path} is not readable: it has more than {most:,} {what}")


def read_json(path: Path) -> Any:
    """Return the plain data of a JSON file.

    Raises:
        squint.InputError: the file is missing, unreadable, larger than 16 MiB or not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
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
    write_bytes(path, _in_order(content))


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata by name: the library's order is another one each time."""
    start, length = 8, int.from_bytes(content[:8], "little")
    header = json.loads(content[start : start + length])
    metadata = header.get("__metadata__", {})
    if len(metadata) < 2:
        return content
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[start + length :]])


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file, on the CPU.

    Raises:
        squint.InputError: the file is missing, truncated, of another format or with a header beyond 16 MiB.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        # A file may be all header: a million empty tensors would take their time.
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{path} is no whole safetensors file: it declares a header of {length} bytes")
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > MAX_TENSORS:
                raise InputError(f"{path} holds {len(names):,} tensors; allowed: up to {MAX_TENSORS:,}")
            metadata = dict(file.metadata() or {})
            # Much of it is JSON, which whoever asked for it will parse.
            for key, text in metadata.items():
                if len(text) > MAX_METADATA_BYTES:
                    most = f"{MAX_METADATA_BYTES >> 20} MiB"
                    raise InputError(f"{path} holds metadata of more than {most} ({key[:40]!r})")
                _check_structure(path, text)
            return {name: file.get_tensor(name) for name in names}, metadata
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no whole safetensors file: {describe(error)}") from None
