"""A disk that is full or fails: every operation on the files of one folder fails once."""

from __future__ import annotations

import builtins
import os
import re
from pathlib import Path
from typing import Any

import pytest

from squint.study import keeping

OPERATIONS = ("mkdir", "open", "write", "fsync", "replace", "unlink", "lock")
_RANDOM = re.compile(r"\.[^./]{8}\.tmp$")


class FailingDisk:
    """Fails each of the operations on each file below `root` once with each of the errors, in turn.

    Of a write that fails, half arrives. The operations are those that writing consists of: making folders,
    opening, writing, flushing, renaming and removing.

    Attributes:
        failed: what has failed so far: (operation, file, error number).
    """

    def __init__(self, root: Path, errors: tuple[int, ...], operations: tuple[str, ...]) -> None:
        self.root, self.errors, self.operations = root, errors, operations
        self.failed: list[tuple[str, str, int]] = []
        self._counts: dict[tuple[str, str], tuple[int, int]] = {}
        self._open: dict[int, str] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the faults into the process."""
        for name in ("mkdir", "unlink"):
            patch.setattr(os, name, self._named(name, getattr(os, name)))
        patch.setattr(os, "open", self._opening(os.open))
        patch.setattr(os, "close", self._closing(os.close))
        patch.setattr(os, "write", self._writing(os.write))
        patch.setattr(os, "fsync", self._flushing(os.fsync))
        patch.setattr(os, "replace", self._renaming(os.replace))
        patch.setattr(keeping, "open", self._named("lock", builtins.open), raising=False)

    def _check(self, operation: str, path: Any) -> None:
        """Raise where this operation is still to fail on this file."""
        name = _RANDOM.sub("", os.fspath(path))
        if operation not in self.operations or not name.startswith(str(self.root)):
            return
        key = operation, os.path.relpath(name, self.root)
        # Neighbouring operations begin with different errors.
        count, first = self._counts.get(key, (0, len(self._counts)))
        if count < len(self.errors):
            self._counts[key] = count + 1, first
            error = self.errors[(first + count) % len(self.errors)]
            self.failed.append((*key, error))
            raise OSError(error, os.strerror(error), str(path))

    def _named(self, operation: str, real: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            self._check(operation, path)
            return real(path, *arguments, **options)

        return call

    def _opening(self, real: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            self._check("open", path)
            handle = real(path, *arguments, **options)
            if isinstance(path, str | os.PathLike):
                self._open[handle] = os.fspath(path)
            return handle

        return call

    def _closing(self, real: Any) -> Any:
        def call(handle: int) -> None:
            self._open.pop(handle, None)
            real(handle)

        return call

    def _writing(self, real: Any) -> Any:
        def call(handle: int, content: Any) -> Any:
            try:
                self._check("write", self._open.get(handle, ""))
            except OSError:
                real(handle, content[: len(content) // 2])
                raise
            return real(handle, content)

        return call

    def _flushing(self, real: Any) -> Any:
        def call(handle: int) -> None:
            self._check("fsync", self._open.get(handle, ""))
            real(handle)

        return call

    def _renaming(self, real: Any) -> Any:
        def call(source: Any, target: Any, **options: Any) -> None:
            self._check("replace", target)
            real(source, target, **options)

        return call
