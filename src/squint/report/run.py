"""The files of a run folder, read without torch's help: JSON, lines of JSON, and arrays without pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from squint._checks import InputError, shown
from squint._files import read_json, read_text
from squint.evaluation.arrays import read_npz
from squint.report.fields import Fields
from squint.report.results import Results, parse_results

MAX_RECIPE_BYTES = 2**20


@dataclass(frozen=True)
class Epoch:
    """The loss terms of one epoch of one system's training, and its validation accuracy as a fraction."""

    epoch: int
    terms: dict[str, float]
    validation_accuracy: float | None


@dataclass(frozen=True)
class Examples:
    """Attacked images of one system, as its `examples/<system>.npz` holds them.

    Attributes:
        index: (n,) places in the dataset.
        label: (n,) true classes.
        clean: (n, channels, height, width) uint8.
        adversarial: like `clean`.
        clean_votes: (n, members) classes.
        adversarial_votes: (n, members) classes.
        error_share: (n,) share of resubmissions that err, in [0, 1].
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    clean: NDArray[np.uint8]
    adversarial: NDArray[np.uint8]
    clean_votes: NDArray[np.int64]
    adversarial_votes: NDArray[np.int64]
    error_share: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What a run folder holds. Empty parts are parts that the run does not have."""

    results: Results
    config: str
    epochs: dict[str, list[Epoch]]
    examples: dict[str, Examples]


def read_run(folder: Path) -> Run:
    """Return the contents of a run folder.

    Args:
        folder: holds `results.json`, and where they exist `plane.json` (whose points replace those of the
            study), `config.yaml`, `log.jsonl` and `examples/*.npz`.

    Raises:
        InputError: if there is no `results.json`, or a file is corrupt; the message names the file.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{folder} has no results.json; needed: the folder of a run")
    data = read_json(path)
    plane = folder / "plane.json"
    if plane.is_file():
        data = _with_plane(data, plane)
    config = folder / "config.yaml"
    log = folder / "log.jsonl"
    files = sorted((folder / "examples").glob("*.npz"))
    return Run(
        results=parse_results(data, str(path)),
        config=read_text(config, MAX_RECIPE_BYTES) if config.is_file() else "",
        epochs=_read_log(log) if log.is_file() else {},
        examples={file.stem: _read_examples(file) for file in files},
    )


def _with_plane(data: Any, path: Path) -> Any:
    """Return a run's results with the points that `squint profile` measured in place of the study's own."""
    measured = read_json(path)
    if not isinstance(data, dict):
        return data
    return data | {"plane": Fields(measured, str(path)).data.get("rows")}


def _read_log(path: Path) -> dict[str, list[Epoch]]:
    """Return the epochs by system; of an epoch that a resumed run repeated, the later line counts."""
    found: dict[str, dict[int, Epoch]] = {}
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline yet: the run is still writing it
                continue
            raise InputError(f"{where} is not valid JSON: {error}") from None
        f = Fields(data, where)
        if f.data.get("event") != "epoch":
            continue
        terms = {name: _term(value, f"{where}: terms: {name}") for name, value in f.mapping("terms").items()}
        epoch = Epoch(f.whole("epoch"), terms, f.optional_number("validation_accuracy", 0, 1))
        found.setdefault(f.text("system"), {})[epoch.epoch] = epoch
    return {system: [epochs[e] for e in sorted(epochs)] for system, epochs in found.items()}


def _term(value: Any, where: str) -> float:
    """Return a loss term. NaN and infinity pass: a training run that diverged is drawn with a gap."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {shown(value)}; allowed: a number")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{where} is a whole number beyond any float; allowed: a number") from None


def _read_examples(path: Path) -> Examples:
    found: dict[str, Any] = dict(read_npz(path))
    missing = [name for name in Examples.__dataclass_fields__ if name not in found]
    if missing:
        raise InputError(f"{path} is incomplete: {missing[0]}")
    arrays = {name: found[name] for name in Examples.__dataclass_fields__}
    n = len(arrays["index"]) if arrays["index"].ndim == 1 else -1
    for name, dimensions in (("label", 1), ("clean", 4), ("adversarial", 4), ("clean_votes", 2),
                             ("adversarial_votes", 2), ("error_share", 1)):  # fmt: skip
        shape = arrays[name].shape
        if len(shape) != dimensions or shape[0] != n:
            raise InputError(f"{path}: {name} has shape {shape}; allowed: {dimensions} dimensions, {n} first")
    for name, other in (("adversarial", "clean"), ("adversarial_votes", "clean_votes")):
        if arrays[name].shape != arrays[other].shape:
            raise InputError(f"{path}: {name} has shape {arrays[name].shape}; allowed: that of {other}")
    for names, words, kinds, size in (
        (("clean", "adversarial"), "uint8", "u", 1),
        (("index", "label", "clean_votes", "adversarial_votes"), "whole numbers", "iu", None),
        (("error_share",), "numbers", "f", None),
    ):
        for name in names:
            dtype = arrays[name].dtype
            if dtype.kind not in kinds or size not in (None, dtype.itemsize):
                raise InputError(f"{path}: {name} has dtype {dtype}; allowed: {words}")
    if 0 in arrays["clean"].shape[1:]:
        raise InputError(f"{path}: clean has shape {arrays['clean'].shape}; allowed: images with pixels")
    return Examples(**arrays)
