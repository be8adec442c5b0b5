"""Which weights a record is of, whether they lie in floats or packed at their bit-widths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.evaluation.batch_outcomes import digest
from squint.export import load
from squint.export.packing import pack

WEIGHTS = "weights"
"""Entry of a record's details with the digest of what was attacked; older records have none."""


def weights_digest(ens: Ensemble) -> str:
    """Return a hash of an ensemble's weights as they are packed: files in floats and packed ones share it."""
    tensors, _ = pack(ens)
    parts = [part for name in sorted(tensors) for part in (name, tensors[name])]
    return digest(*parts)[:16]


def check_records(file: Path, records: Sequence[dict[str, Any]], weights: Path) -> None:
    """Refuse records that name other weights than those of a file.

    Raises:
        squint.InputError: they do.
    """
    details = [record.get("details", {}) for record in records]
    named = {str(each[WEIGHTS]) for each in details if WEIGHTS in each}
    if named and named != {weights_digest(load(weights))}:
        raise InputError(
            f"{file} holds records of other weights than {weights}; allowed: those of squint attack on these"
        )
