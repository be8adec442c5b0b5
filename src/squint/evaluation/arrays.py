"""Arrays in npz files: no pickle, and no file may claim more than it may hold."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from squint._checks import InputError, describe
from squint._files import write_bytes

Array = NDArray[np.generic]
MAX_BYTES = 8 * 2**30
MAX_ARRAYS = 64
SMALL_BYTES = 64 * 2**20
MAX_RATIO = 100
"""Most bytes that arrays of more than `SMALL_BYTES` may take per byte of their file; images take ten."""

MAX_READ = 2**20
"""Most bytes read at once. The list of members is, and zipfile keeps all of it: 64 names are far shorter."""

_DAMAGED = (
    zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error,
    SyntaxError, struct.error, tokenize.TokenError, TypeError, LookupError, OverflowError, MemoryError,
)  # fmt: skip
"""What zipfile, zlib and numpy's header parser raise for damaged files."""


class _Sparing(io.BufferedReader):
    """A file that gives no more than `MAX_READ` bytes at once, however many it is said to hold."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_READ:
            raise zipfile.BadZipFile(f"it wants {size} bytes at once")
        return super().read(size)


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as one compressed npz file, whole or not at all; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            npy.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
    write_bytes(path, buffer.getvalue())


def read_npz(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """Return the arrays of an npz file.

    Args:
        path: the file.
        max_bytes: most bytes that the arrays may take in memory together; checked before any is read.

    Raises:
        squint.InputError: the file is missing, no whole npz, too large, or holds Python objects.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with _Sparing(io.FileIO(path)) as source, zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            allowed = min(max_bytes, max(SMALL_BYTES, MAX_RATIO * path.stat().st_size))
            if len(members) > MAX_ARRAYS or total > allowed:
                raise InputError(
                    f"{path} holds {len(members)} arrays of {total} bytes; "
                    f"allowed for a file of its length: {MAX_ARRAYS} arrays of {allowed} bytes together"
                )
            return {member.filename.removesuffix(".npy"): _read(archive, member, path) for member in members}
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no whole npz file: {describe(error)}") from None


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Array:
    """Return one array, after its header has been held against the size of its file."""
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise InputError(f"{path}: {member.filename} has npy version {version}; allowed: 1.0 and 2.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise InputError(f"{path}: {member.filename} holds Python objects; allowed: numbers and text")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise InputError(f"{path}: {member.filename} claims shape {shape}, more than it holds")
    with archive.open(member) as file:
        array: Array = npy.read_array(file, allow_pickle=False)
    # Files of machines with the other byte order are whole, too; torch takes its own order alone.
    return array.astype(array.dtype.newbyteorder("="), copy=False)
