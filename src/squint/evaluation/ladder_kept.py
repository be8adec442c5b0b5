"""The ladder's batches from a folder, put together: files that were damaged on purpose are told apart too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from squint._checks import InputError, describe
from squint.evaluation.arrays import Array
from squint.evaluation.ladder_result import LadderResult, assemble
from squint.evaluation.scoring import Scores


def assembled(
    configuration: Mapping[str, Any],
    labels: Tensor,
    images: Tensor,
    parts: Sequence[tuple[dict[str, Array], dict[str, Any]]],
    folder: Path,
) -> LadderResult:
    """Return what the batches of a folder amount to, every part of its kind and size.

    Raises:
        squint.InputError: a batch holds something else than an outcome of the ladder.
    """
    try:
        found = assemble(configuration, labels, images, parts)
        _check(found)
        # Every figure can be computed.
        found.summary()
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"{folder} holds a batch that is no outcome of the ladder ({describe(error)}): remove that folder"
        ) from None
    return found


def _check(found: LadderResult) -> None:
    """Raise `ValueError` where a part is of another shape or kind than the images ask for."""
    n, climb = len(found.labels), found.climb
    scored = (found.clean, found.deployed, found.single, found.rounded)
    counts = [(scores.resubmissions, scores.draws) for scores in scored]
    counts += [(point.resubmissions, point.draws) for point in found.sweep]
    if not all(type(count) is int and 0 < count < 2**31 for pair in counts for count in pair):
        raise ValueError("resubmissions and draws are whole numbers from 1")
    if not all(type(scores.random) is bool for scores in scored):
        raise ValueError("random is true or false")
    spent = [found.seconds, *(run.seconds for run in climb.rungs), *(point.seconds for point in found.sweep)]
    spent += [number for run in climb.rungs for number in (run.survivors, run.gradients, run.forwards)]
    if not all(type(number) in (int, float) and 0 <= number < math.inf for number in spent):
        raise ValueError("seconds and counts are not negative")
    if not all(isinstance(text, str) for run in climb.rungs for text in (run.name, *run.skipped)):
        raise ValueError("rungs and what they skipped have names")
    rows = [climb.broken_by, climb.gradients, climb.forwards, found.margins, found.clean_margins]
    rows += [tensor for scores in scored for tensor in _rows(scores)]
    rows += [point.errors for point in found.sweep]
    rows += [known for known in (found.known_wrong, found.known_clean_wrong) if known is not None]
    if not all(row.shape == (n,) for row in (*rows, *climb.margins.values())):
        raise ValueError("there is one value for each image")
    points = [*climb.points.values(), found.points_uint8]
    if not all(point.shape == found.images.shape for point in points):
        raise ValueError("points are images")
    if found.points_uint8.dtype != torch.uint8 or not all(p.is_floating_point() for p in points[:-1]):
        raise ValueError("points are of the wrong kind")


def _rows(scores: Scores) -> list[Tensor]:
    return [rows for rows in (scores.errors, scores.single_errors, scores.nan) if rows is not None]
