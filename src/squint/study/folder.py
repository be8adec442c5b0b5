"""A run is a folder: its frozen configuration, checkpoints, weights, outcomes, records and log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from squint._checks import InputError
from squint._files import read_json, read_text, remove_file, remove_folder, write_json, write_text
from squint.evaluation.arrays import write_npz
from squint.quantize.quantizer import ROUNDINGS
from squint.study.config import RecipeConfig, decisive, first_difference
from squint.study.keeping import LOCK, Lock, check_data, check_version, environments, file_digest
from squint.study.recipes import read_recipe, to_yaml
from squint.zoo import hint

_OWN = (
    "run.json",
    "results.json",
    "report.html",
    "log.jsonl",
    "plane.csv",
    "plane.json",
    "verdicts.json",
    "detection.json",
    "images.npz",
    "card.md",
)
_OWN_FOLDERS = (
    "checkpoints",
    "weights",
    "examples",
    "figures",
    "systems",
    "attacks",
    "ladder",
    "plane",
    "evidence",
    "detection",
    "detectors",
)


LONGEST = 1e12
"""Seconds that no training takes; beyond them a whole number may be no float."""
_SAME_DATA = "give it those that it was begun with (--data-dir says where they lie)"


class RunFolder:
    """One run's files; held by one process at a time. `close` it, or use it in a `with` statement.

    Args:
        path: the folder.
        config: the recipe of this run.
        resume: continue a run of the same recipe.
        overwrite: remove the files of an earlier run first.
        data: digests of its images, see `keeping.digests_of`; a run goes on with the same images only.

    Raises:
        squint.InputError: see `check_folder`; or it cannot be written, or is in use by another process, or
            was begun with other images.
    """

    def __init__(
        self,
        path: Path,
        config: RecipeConfig,
        *,
        resume: bool,
        overwrite: bool,
        data: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        check_folder(path, config, resume=resume, overwrite=overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None
        self._lock = Lock(path)
        try:
            # Another process may have used the folder between the first look and the lock.
            check_folder(path, config, resume=resume, overwrite=overwrite)
            if overwrite:
                self._clear()
            check_data(path, data or {}, f"{_SAME_DATA}, or name another --output")
            write_text(path / "config.yaml", to_yaml(config))
            self.environments = environments(path, data)
            self._events = self._read_log()
        except BaseException:
            self._lock.close()
            raise

    def _clear(self) -> None:
        exported = [file for rounding in ROUNDINGS for file in self.path.glob(f"*-{rounding}.onnx")]
        for file in (*(self.path / name for name in _OWN), *exported):
            remove_file(file)
        for name in _OWN_FOLDERS:
            remove_folder(self.path / name)

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

    def attacks(self, system: str) -> Path:
        """Return the folder of what is done of a system's unfinished attacks."""
        return self.path / "attacks" / system

    def evidence(self, system: str) -> Path:
        """Return the file of a system's worst examples."""
        return self.path / "evidence" / f"{system}.npz"

    def outcome(self, system: str) -> Path:
        """Return the file of a system's records."""
        return self.path / "systems" / f"{system}.json"

    def finish_training(self, system: str, seconds: float) -> None:
        """Note that a system's weights are final, and let go of its checkpoint."""
        facts = {"seconds": seconds, "sha256": file_digest(self.weights(system))}
        write_json(self.training(system), facts)
        remove_file(self.checkpoint(system))

    def training_seconds(self, system: str) -> float | None:
        """Return how long a system's finished training took, or None where it is still to be done.

        Raises:
            squint.InputError: the weights are not those that the training wrote, or the note is damaged.
        """
        weights, note = self.weights(system), self.training(system)
        if not (weights.exists() and note.exists()):
            return None
        again = f"to train {system} again"
        facts = _own(note, again)
        seconds, digest = facts.get("seconds"), facts.get("sha256")
        if not isinstance(seconds, int | float) or not 0 <= seconds < LONGEST:
            raise InputError(f"{note} is damaged: remove it {again}")
        # Folders from before digests were kept have none.
        if digest is not None and digest != file_digest(weights):
            raise InputError(
                f"{weights} is not the file that its training wrote: put that one back, or remove it {again}"
            )
        # Where the process ended between the note and this.
        remove_file(self.checkpoint(system))
        return float(seconds)

    def finish_attack(self, system: str, outcome: dict[str, Any]) -> None:
        """Keep a system's facts, records and plane points, with the digest of the weights they are of.

        Its attacks batch by batch are let go of.
        """
        write_json(self.outcome(system), {**outcome, "weights_sha256": file_digest(self.weights(system))})
        remove_folder(self.attacks(system))

    def finished_attack(self, system: str) -> dict[str, Any] | None:
        """Return a system's facts, records and plane points, or None where it is still to be attacked.

        Raises:
            squint.InputError: the file is damaged, or another system's, or of other weights than these.
        """
        path = self.outcome(system)
        if not path.exists():
            return None
        again = f"to attack {system} again"
        outcome = _own(path, again)
        facts, records = outcome.get("system"), outcome.get("records")
        listed = records if isinstance(records, list) else [None]
        own = isinstance(facts, dict) and facts.get("name") == system
        own = own and all(isinstance(each, dict) and each.get("system") == system for each in listed)
        if not own or not isinstance(outcome.get("plane"), list):
            raise InputError(f"{path} does not hold the records of {system}: remove it {again}")
        # Files from before it was kept have none.
        digest = outcome.get("weights_sha256")
        if digest is not None and digest != file_digest(self.weights(system)):
            raise InputError(f"{path} holds records of another weights file: remove it {again}")
        # Where the process ended between the records and this.
        remove_folder(self.attacks(system))
        return outcome

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
            return [dict(json.loads(line)) for line in read_text(path).splitlines()]
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{path} is not readable: remove it to go on without the log so far") from None

    def write_results(self, results: dict[str, Any]) -> None:
        """Write `results.json`."""
        write_json(self.path / "results.json", results)

    def write_examples(self, system: str, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Write a system's attacked images as compressed arrays."""
        write_npz(self.examples(system), arrays)


def check_folder(path: Path, config: RecipeConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that this run may not use; writes nothing.

    Raises:
        squint.InputError: `path` is a file, or holds a run and neither `resume` nor `overwrite` is set, or
            holds something else, or a run of another recipe, or was written by a newer squint.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; needed: a folder for the run")
    if not path.is_dir() or all(_is_leftover(file.name) for file in path.iterdir()):
        return
    if not (path / "config.yaml").is_file():
        raise InputError(f"{path} is no run folder of squint's (no config.yaml): name another --output")
    check_version(path)
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


def _own(path: Path, again: str) -> dict[str, Any]:
    """Return one of the run's own files, or say what to do about it."""
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; remove it {again}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: remove it {again}")
    return content


def _is_leftover(name: str) -> bool:
    """Return whether a process that was killed before it wrote anything else leaves such a file behind."""
    return name == LOCK or (name.startswith(".config.yaml.") and name.endswith(".tmp"))


def read_config(path: Path) -> RecipeConfig:
    """Return the recipe of a run folder.

    Raises:
        squint.InputError: no run folder, or a configuration that cannot be read.
    """
    file = path / "config.yaml"
    if not file.is_file():
        raise InputError(f"{path} is no run folder of squint's: it has no config.yaml{hint(path)}")
    check_version(path)
    return read_recipe(file, of_run=True)


def read_results(path: Path) -> dict[str, Any]:
    """Return the results of a run folder as plain data.

    Raises:
        squint.InputError: no run folder with results, or a file that cannot be read.
    """
    if not (path / "results.json").is_file():
        raise InputError(f"{path} is no folder of a finished run: it has no results.json{hint(path)}")
    check_version(path)
    results = read_json(path / "results.json")
    if not isinstance(results, dict):
        raise InputError(f"{path / 'results.json'} holds no results")
    return results
