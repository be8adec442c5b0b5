"""Who holds a run folder, which squint wrote it, and where its parts were computed."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from squint._checks import InputError
from squint._files import read_json, remove_leftovers, write_json
from squint.data import Splits
from squint.study.systems import environment
from squint.training.checkpoint import data_digest

FOLDER_VERSION = 1
"""Of what lies in a run folder and how."""
LOCK = ".lock"
CHANGED = "its files have changed since; put those back"
"""What to do where a run's own data are not what they were."""
_ABOUT = "run.json"


class Lock:
    """A run folder held by this process alone, until it is closed or the process ends, however it ends.

    Args:
        path: the folder.
        clear: remove what killed processes began to write below it; of a run folder nobody else can be
            writing there now.

    Raises:
        squint.InputError: another process holds it, or it cannot be written.
    """

    def __init__(self, path: Path, *, clear: bool = True) -> None:
        try:
            self._file = open(path / LOCK, "a", opener=_plainly)  # noqa: SIM115
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"{path} is in use by another squint process") from None
        except OSError as error:
            self._file.close()
            raise InputError(f"cannot lock {path}: {error.strerror or error}") from None
        if not self._is_at(path):
            # Whoever held the folder has just removed it with all that was in it: nothing.
            self._file.close()
            raise InputError(f"{path} is in use by another squint process")
        try:
            if clear:
                remove_leftovers(path)
        except InputError:
            self._file.close()
            raise

    def _is_at(self, path: Path) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._file.fileno()), os.lstat(path / LOCK))
        return False

    def close(self) -> None:
        """Let go of the folder."""
        self._file.close()


def _plainly(path: str, flags: int) -> int:
    """Open a file where it is: no link is followed, and a pipe does not wait for its other end."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


@contextmanager
def held(folder: Path, *, make: bool = False) -> Iterator[None]:
    """Keep other processes that write into a run folder out of it; anything else is left as it is.

    Args:
        folder: a run folder, or another one.
        make: hold a folder that is no run folder, too, and make it where it is missing; one that was made for
            nothing, as where an option is refused, is removed again. What killed processes began stays there:
            other people's files and other runs may lie below.

    Raises:
        squint.InputError: see `Lock`.
    """
    is_run = (folder / "config.yaml").is_file()
    if not (is_run or make):
        yield
        return
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
    lock = Lock(folder, clear=is_run)
    try:
        yield
    finally:
        if missing:
            _remove_made(missing)
        lock.close()


def _remove_made(folders: list[Path]) -> None:
    """Remove a folder that holds its lock alone and those of its parents that nobody else has used since."""
    with suppress(OSError):
        if os.listdir(folders[0]) != [LOCK]:
            return
        (folders[0] / LOCK).unlink()
        for folder in folders:
            folder.rmdir()


def check_weights(run: Path, system: str) -> None:
    """Refuse to speak for a system whose weights are not those that its training wrote, or was attacked with.

    Folders from before digests were kept, and published ones, say nothing.

    Raises:
        squint.InputError: other weights, or a damaged note; the line names the files.
    """
    weights = run / "weights" / f"{system}.safetensors"
    notes = {f"{system}.training.json": "sha256", f"{system}.json": "weights_sha256"}
    for name, key in notes.items():
        note = run / "systems" / name
        if note.is_file():
            known = read_json(note)
            digest = known.get(key) if isinstance(known, dict) else None
            if digest is not None and digest != file_digest(weights):
                raise InputError(f"{weights} is not the file that {note} is of: put that one back")


def check_version(path: Path) -> None:
    """Refuse a run folder from a newer squint.

    Raises:
        squint.InputError: the folder is newer, or `run.json` is damaged.
    """
    about = _about(path)
    if about["format_version"] > FOLDER_VERSION:
        raise InputError(
            f"{path} was written by a newer squint ({_writer(about)}; folder format "
            f"{about['format_version']}, this one reads {FOLDER_VERSION}): update squint, or name another "
            "--output"
        )


def environments(path: Path, data: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return every set of versions and hardware that computed a part of this run, this process's last.

    They are kept in `run.json`. Only where there is one are the run's numbers those of one machine.

    Args:
        path: the run folder.
        data: digests of the run's images, which are kept too; None: those that are kept stay.
    """
    versions, hardware = environment()
    here = {"versions": versions, "hardware": hardware}
    about = _about(path)
    known = [each for each in about["environments"] if each != here]
    kept = about["data"] if data is None else dict(data)
    content = {"format_version": FOLDER_VERSION, "environments": [*known, here], "data": kept}
    write_json(path / _ABOUT, content)
    return [*known, here]


def digests_of(splits: Splits) -> dict[str, str]:
    """Return a hash of each part of a data set, its images and labels, by the part's name."""
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: data_digest(part.images, part.labels) for name, part in parts.items()}


def check_data(path: Path, data: Mapping[str, str], advice: str) -> None:
    """Refuse images that are not those that a run was begun with, however alike in number and shape.

    Args:
        path: the run folder; one from before digests were kept takes any.
        data: what `digests_of` found.
        advice: what to do about it.

    Raises:
        squint.InputError: a part differs, or `run.json` is damaged.
    """
    for part in data:
        if not has_data(path, {part: data[part]}):
            raise InputError(f"{path} was begun with other {part} images or labels than these: {advice}")


def has_data(path: Path, data: Mapping[str, str]) -> bool:
    """Return whether images are those that a run was begun with, as far as it knows; see `check_data`."""
    known = data_digests(path)
    return all(known.get(part, digest) == digest for part, digest in data.items())


def data_digests(path: Path) -> dict[str, str]:
    """Return what a run keeps of `digests_of` its images; nothing where it is from before that was kept."""
    return dict(_about(path)["data"])


def _about(path: Path) -> dict[str, Any]:
    """Return what `run.json` says; folders from before it have none, and are of format 1."""
    file = path / _ABOUT
    if not file.exists():
        return {"format_version": 1, "environments": [], "data": {}}
    about = read_json(file)
    found = about.get("environments") if isinstance(about, dict) else None
    if not isinstance(found, list) or type(about.get("format_version")) is not int:
        raise InputError(f"{file} is damaged: remove it if this squint began the run")
    data = about.get("data")
    return {**about, "data": data if isinstance(data, dict) else {}}


def _writer(about: dict[str, Any]) -> str:
    """Return the version that wrote last, as far as a file from the future tells."""
    last = about["environments"][-1] if about["environments"] else None
    versions = last.get("versions") if isinstance(last, dict) else None
    return str(versions.get("squint-nn", "?") if isinstance(versions, dict) else "?")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        squint.InputError: it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} is not readable: {error.strerror or error}") from None
