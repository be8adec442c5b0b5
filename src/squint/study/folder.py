"""A run is a folder: its frozen configuration, checkpoints, weights, outcomes, records and log."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from squint._checks import InputError
from squint._files import read_json, write_bytes, write_json, write_text
from squint.study.config import RecipeConfig, decisive, first_difference
from squint.study.recipes import read_recipe, to_yaml

_LOCK = ".lock"
_OWN = (
    "results.json",
    "report.html",
    "log.jsonl",
    "plane.csv",
    "plane.json",
    "verdicts.json",
    "detection.json",
)
_OWN_FOLDERS = ("checkpoints", "weights", "examples", "figures", "systems", "ladder", "evidence")


class RunFolder:
    """One run's files; held by one process at a time. `close` it, or use it in a `with` statement.

    Args:
        path: the folder.
        config: the recipe of this run.
        resume: continue a run of the same recipe.
        overwrite: remove the files of an earlier run first.

    Raises:
        squint.InputError: see `check_folder`; or it cannot be written, or is in use by another process.
    """

    def __init__(self, path: Path, config: RecipeConfig, *, resume: bool, overwrite: bool) -> None:
        self.path = path
        check_folder(path, config, resume=resume, overwrite=overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / _LOCK, "a")  # noqa: SIM115
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another process may have used the folder between the first look and the lock.
            check_folder(path, config, resume=resume, overwrite=overwrite)
            if overwrite:
                self._clear()
            write_text(path / "config.yaml", to_yaml(config))
            self._events = self._read_log()
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"{path} is in use by another squint process") from None
        except BaseException:
            self._lock.close()
            raise

    def _clear(self) -> None:
        for name in _OWN:
            (self.path / name).unlink(missing_ok=True)
        for name in _OWN_FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def __enter__(self) -> RunFolder:
        """Return the folder itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the folder."""
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def checkpoint(self, system: str) -> Path:
        """Return the file of a system's training state."""
        return self.path / "checkpoints" / f"{system}.safetensors"

    def weights(self, system: str) -> Path:
        """Return the file of a system's trained weights."""
        return self.path / "weights" / f"{system}.safetensors"

    def training(self, system: str) -> Path:
        """Return the file of what is known about a system's finished training."""
        return self.path / "systems" / f"{system}.training.json"

    def examples(self, system: str) -> Path:
        """Return the file of a system's attacked images."""
        return self.path / "examples" / f"{system}.npz"

    def evidence(self, system: str) -> Path:
        """Return the file of a system's worst examples."""
        return self.path / "evidence" / f"{system}.npz"

    def outcome(self, system: str) -> Path:
        """Return the file of a system's records."""
        return self.path / "systems" / f"{system}.json"

    def log(self, system: str, entry: dict[str, Any]) -> None:
        """Put an epoch's entry in `log.jsonl`, in the place of one of the same system and epoch."""
        entry = {**entry, "system": system}
        key = (system, entry["epoch"])
        self._events = [e for e in self._events if (e.get("system"), e.get("epoch")) != key] + [entry]
        write_text(self.path / "log.jsonl", "".join(json.dumps(e) + "\n" for e in self._events))

    def _read_log(self) -> list[dict[str, Any]]:
        path = self.path / "log.jsonl"
        if not path.exists():
            return []
        try:
            return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (ValueError, TypeError, OSError):
            raise InputError(f"{path} is not readable: remove it to go on without the log so far") from None

    def write_results(self, results: dict[str, Any]) -> None:
        """Write `results.json`."""
        write_json(self.path / "results.json", results)

    def write_examples(self, system: str, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Write a system's attacked images as compressed arrays."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_bytes(self.examples(system), buffer.getvalue())


def check_folder(path: Path, config: RecipeConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that this run may not use; writes nothing.

    Raises:
        squint.InputError: `path` is a file, or holds a run and neither `resume` nor `overwrite` is set, or
            holds something else, or holds a run of another recipe.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; needed: a folder for the run")
    if not path.is_dir() or all(_is_leftover(file.name) for file in path.iterdir()):
        return
    if not (path / "config.yaml").is_file():
        raise InputError(f"{path} is no run folder of squint's (no config.yaml): name another --output")
    if overwrite:
        return
    if not resume:
        raise InputError(f"{path} exists: continue it with --resume or replace it with --overwrite")
    difference = first_difference(decisive(read_config(path)), decisive(config))
    if difference is not None:
        raise InputError(
            f"{path} holds a run of another recipe: {difference}; resume with the same settings or name "
            "another --output"
        )


def _is_leftover(name: str) -> bool:
    """Return whether a process that was killed before it wrote anything else leaves such a file behind."""
    return name == _LOCK or (name.startswith(".config.yaml.") and name.endswith(".tmp"))


def read_config(path: Path) -> RecipeConfig:
    """Return the recipe of a run folder.

    Raises:
        squint.InputError: no run folder, or a configuration that cannot be read.
    """
    file = path / "config.yaml"
    if not file.is_file():
        raise InputError(f"{path} is no run folder of squint's: it has no config.yaml")
    return read_recipe(file)


def read_results(path: Path) -> dict[str, Any]:
    """Return the results of a run folder as plain data.

    Raises:
        squint.InputError: no run folder with results, or a file that cannot be read.
    """
    if not (path / "results.json").is_file():
        raise InputError(f"{path} is no folder of a finished run: it has no results.json")
    results = read_json(path / "results.json")
    if not isinstance(results, dict):
        raise InputError(f"{path / 'results.json'} holds no results")
    return results
