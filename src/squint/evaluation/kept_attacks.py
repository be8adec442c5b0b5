"""Plain attacks, batch by batch in a folder: a stopped evaluation goes on with the batch that it was at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from squint._checks import InputError
from squint.evaluation.arrays import Array
from squint.evaluation.batch_outcomes import BatchOutcomes, as_array
from squint.evaluation.scoring import Scores

Part = tuple[Tensor | None, Scores]
"""Attacked images on the CPU, None for clean ones, and how deployments did on them."""


class KeptAttacks:
    """What is done of an evaluation: one file pair per batch of images, for clean images and every attack.

    Args:
        folder: of this evaluation alone; None keeps nothing.
        configuration: returns, as plain data, what outcomes depend on; asked where there is a folder.
        batches: batches of images.

    Raises:
        squint.InputError: the folder holds another configuration's outcomes, or cannot be written.
    """

    def __init__(
        self, folder: Path | None, configuration: Callable[[], Mapping[str, Any]], batches: int
    ) -> None:
        self._store = None if folder is None else BatchOutcomes(folder, configuration())
        self._batches = batches

    def part(self, turn: int, batch: int, compute: Callable[[], Part]) -> tuple[Part, float]:
        """Return a batch's part from its files, or as `compute` gives it, which is then kept.

        With it come the seconds that it took when it was computed.

        Args:
            turn: 0 for clean images, k for the k-th attack and radius.
            batch: place among the batches of images.
            compute: attacks and scores.

        Raises:
            squint.InputError: the files are damaged or not this batch's.
        """
        if self._store is None:
            return _timed(compute)
        place = turn * self._batches + batch
        found = self._store.load(place)
        if found is not None:
            try:
                return _read(*found)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise InputError(
                    f"batch {place} in {self._store.folder} holds no outcome of an attack: remove that folder"
                ) from None
        part, seconds = _timed(compute)
        self._store.save(place, *_written(*part, seconds))
        return part, seconds


def _timed(compute: Callable[[], Part]) -> tuple[Part, float]:
    started = time.perf_counter()
    part = compute()
    return part, time.perf_counter() - started


def _written(
    points: Tensor | None, scores: Scores, seconds: float
) -> tuple[dict[str, Array], dict[str, Any]]:
    tensors = {"points": points, "errors": scores.errors, "single_errors": scores.single_errors}
    tensors["nan"] = scores.nan
    counts = {"resubmissions": scores.resubmissions, "draws": scores.draws, "random": scores.random}
    plain = {**counts, "seconds": seconds}
    return {name: as_array(held) for name, held in tensors.items() if held is not None}, plain


def _read(arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> tuple[Part, float]:
    held = {name: torch.from_numpy(array) for name, array in arrays.items()}
    counts = plain["resubmissions"], plain["draws"]
    if (
        any(type(count) is not int or not 1 <= count < 2**31 for count in counts)
        or type(plain["random"]) is not bool
    ):
        raise ValueError
    if len({len(tensor) for tensor in held.values()}) != 1:
        raise ValueError
    scores = Scores(
        held["errors"], counts[0], held["single_errors"], counts[1], plain["random"], held.get("nan")
    )
    seconds = plain["seconds"]
    if not isinstance(seconds, float) or not 0 <= seconds < math.inf:
        raise ValueError
    return (held.get("points"), scores), seconds
