"""Rows of an information plane, point by point in a folder: a stopped plane goes on with the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from squint import _ranks
from squint._checks import InputError
from squint.evaluation.batch_outcomes import BatchOutcomes
from squint.evaluation.plane_profile import PlaneRow

LARGEST = 1e6
"""No information of a batch of images is that large, in nats."""


class KeptRows:
    """What is done of a plane; the first process of a job alone reads and writes it.

    Args:
        folder: of this plane alone; None keeps nothing.
        configuration: returns, as plain data, what rows depend on; asked where there is a folder.

    Raises:
        squint.InputError: the folder holds another plane's rows, or cannot be written.
    """

    def __init__(self, folder: Path | None, configuration: Callable[[], Mapping[str, Any]]) -> None:
        self._stores: list[BatchOutcomes] = []
        if folder is not None:
            _ranks.first(lambda: self._stores.append(BatchOutcomes(folder, configuration())))
        self._keeps = folder is not None

    def rows(self, point: int, compute: Callable[[], list[PlaneRow]]) -> list[PlaneRow]:
        """Return a point's rows from its files, or as `compute` gives them, which are then kept.

        Raises:
            squint.InputError: the files are damaged or not this point's.
        """
        known = _ranks.first(lambda: self._read(point)) if self._keeps else None
        if known is not None:
            return known
        found = compute()
        for store in self._stores:
            store.save(point, {}, {"rows": [row.to_json() for row in found]})
        return found

    def _read(self, point: int) -> list[PlaneRow] | None:
        store = self._stores[0]
        found = store.load(point)
        if found is None:
            return None
        try:
            rows = [PlaneRow.from_json(row) for row in found[1]["rows"]]
            if not rows or not all(_is_whole(row) for row in rows):
                raise ValueError
            return rows
        except (InputError, KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"point {point} in {store.folder} holds no rows of a plane: remove that folder"
            ) from None


def _is_whole(row: PlaneRow) -> bool:
    """Return whether every field of a row is of its kind: text, shares, finite nats, counts."""
    shares = (row.accuracy, *row.accuracy_ci95)
    nats = (row.information, row.baseline, *row.information_ci95)
    return (
        all(isinstance(t, str) for t in (row.system, row.threat, row.eps, row.estimator, row.layer))
        and all(type(count) is int and count > 0 for count in (row.n, row.draws))
        and (row.strength is None or type(row.strength) is int)
        and all(isinstance(share, float | int) and 0 <= share <= 1 for share in shares)
        and all(isinstance(value, float | int) and abs(value) < LARGEST for value in nats)
    )
