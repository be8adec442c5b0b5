"""Checksummed, resumable downloads, and extraction of named members from an archive."""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from squint._checks import InputError, describe
from squint._files import put_in_place

ATTEMPTS = 5
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
_BLOCK = 1 << 18
_LARGEST_MEMBER = 1 << 28

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file at its own home, with what proves that it arrived whole.

    Attributes:
        url: where it is.
        sha256: 64 hexadecimal digits.
        size: bytes.
    """

    url: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """Return the last part of the address, under which the file is stored."""
        return self.url.rsplit("/", 1)[-1]


def default_folder() -> Path:
    """Return the platform's cache folder for squint (`~/.cache/squint` on Linux)."""
    import pooch

    return Path(pooch.os_cache("squint"))


def fetch(remote: RemoteFile, folder: Path) -> Path:
    """Return the path of the file in `folder`, downloaded unless it is there; its checksum always holds.

    Bytes go to `NAME.part`, which a later call continues with an HTTP range request (from the beginning
    where the server knows no ranges), and which becomes `NAME` only after its SHA-256 has been checked.
    One process at a time fetches into a folder; others wait, and find the file there.

    Raises:
        InputError: no connection, an answer of another size, or a wrong checksum. A download with a wrong
            checksum is removed; a file that was there before is left, and refused.
    """
    target = folder / remote.name
    with nullcontext() if target.exists() else _alone(folder):
        if target.exists():
            _verify(target, target, remote, "remove it to download it again")
            return target
        part = folder / f"{remote.name}.part"
        _download(remote, part)
        try:
            _verify(part, target, remote, "the download was removed; try again")
        except InputError:
            part.unlink()
            raise
        put_in_place(part, target)
    return target


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time fill a folder: those of a job all find it empty at once.

    The lock is the folder's own, which the kernel keeps and which goes with the process. Where there is none,
    since a file system knows no locks or the folder cannot be made, all go on.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _verify(path: Path, target: Path, remote: RemoteFile, advice: str) -> None:
    import pooch

    found = pooch.file_hash(str(path), alg="sha256")
    if found != remote.sha256:
        raise InputError(f"{target} has SHA-256 {found}; expected {remote.sha256}; {advice}")


def _download(remote: RemoteFile, part: Path) -> None:
    """Fill `part` up to the file's size, continuing after interruptions."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            have = _continue(remote, part)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if 400 <= error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            reason = describe(error)
        else:
            if have == remote.size:
                return
            reason = f"the connection ended after {have} of {remote.size} bytes"
    raise InputError(
        f"could not download {remote.url} to {part.parent}: {reason}; what has arrived is kept and continued "
        "next time, and --data-dir names a folder that already holds the files"
    )


def _continue(remote: RemoteFile, part: Path) -> int:
    """Return the size of `part` after one request for what it lacks."""
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    if have >= remote.size:
        return _truncate(part, remote.size)
    headers = {"User-Agent": "squint", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(remote.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        start = have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        _check_answer(response, remote, start)
        _log.info("downloading %s: %d of %d bytes are here", remote.url, start, remote.size)
        with part.open("ab" if start else "wb") as out:
            left = remote.size - start
            while left and (block := response.read(min(_BLOCK, left))):
                out.write(block)
                left -= len(block)
    return remote.size - left


def _truncate(part: Path, size: int) -> int:
    with part.open("r+b") as out:
        out.truncate(size)
    return size


def _check_answer(response: http.client.HTTPResponse, remote: RemoteFile, start: int) -> None:
    """Refuse an answer that is another file (a login page, a new version) before anything is written."""
    length = response.headers.get("Content-Length", "")
    content_range = response.headers.get("Content-Range", "")
    if start and not content_range.startswith(f"bytes {start}-"):
        raise InputError(
            f"{remote.url} answered with range {content_range!r}; expected one from byte {start}"
        )
    if length.isdigit() and start + int(length) != remote.size:
        raise InputError(f"{remote.url} holds {start + int(length)} bytes; expected {remote.size}")


def extract(archive: Path, wanted: Mapping[str, int], folder: Path) -> None:
    """Write the wanted members of a gzipped tar archive to `folder`, each under its last name.

    Names come from `wanted` alone, never from the archive, so no member can reach outside `folder`. Files
    that are there already stay as they are.

    Args:
        archive: a `.tar.gz` file.
        wanted: full member name -> the most bytes it may have.
        folder: created where missing.

    Raises:
        InputError: a broken archive, a member that is too large or no plain file, or one that is missing.
    """
    missing = set(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder), tarfile.open(archive, "r|gz") as stream:
            for member in stream:
                if member.size > wanted.get(member.name, _LARGEST_MEMBER):
                    raise InputError(f"{archive}: member {member.name!r} has {member.size} bytes, too many")
                if member.name in missing:
                    _write(stream, member, folder / member.name.rsplit("/", 1)[-1])
                    missing.remove(member.name)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{archive}: cannot be extracted: {describe(error)}") from error
    if missing:
        raise InputError(f"{archive}: lacks {', '.join(sorted(missing))}")


def _write(stream: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if not member.isreg():
        raise InputError(f"{stream.name!s}: member {member.name!r} is not a plain file")
    if target.exists():
        return
    source = stream.extractfile(member)
    assert source is not None
    part = target.with_name(target.name + ".part")
    with source, part.open("wb") as out:
        shutil.copyfileobj(source, out)
    # A power cut must not leave a whole name with half of the images, or with zeros.
    put_in_place(part, target)
