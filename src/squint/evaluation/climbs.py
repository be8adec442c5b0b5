"""What climbing the ladder gives: worst points, the rung that broke each image, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

UNBROKEN = -1
"""In `Climb.broken_by`: no rung made the image err."""


@dataclass(frozen=True)
class RungRun:
    """What one rung did on one batch of images.

    Attributes:
        name: the rung's.
        survivors: images it attacked.
        gradients: gradients per attacked image, those of transfer sources included.
        forwards: forward passes without a gradient per attacked image, selection not included.
        seconds: wall time, selection included.
        chunk: draws whose graph was held at once; None: all.
        skipped: moves that were not run, each with its reason.
    """

    name: str
    survivors: int
    gradients: int
    forwards: int
    seconds: float
    chunk: int | None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Climb:
    """The worst case found for every image of a batch.

    Attributes:
        points: images (n, ...) by scoring rule, "deployed" and "single".
        margins: selection margins (n,) by rule, on the bank of the last rung that attacked the image.
        broken_by: (n,) the rung, from 1, after which half of the selection's resubmissions first erred; 0
            where the clean image errs already, -1 where no rung got there.
        gradients: gradients spent on each image (n,).
        forwards: forward passes of attacks without a gradient (n,).
        rungs: what each rung did.
        first: the deployed rule's points (n, ...) after the first rung.
    """

    points: Mapping[str, Tensor]
    margins: Mapping[str, Tensor]
    broken_by: Tensor
    gradients: Tensor
    forwards: Tensor
    rungs: tuple[RungRun, ...]
    first: Tensor | None = None


def joined(parts: Sequence[Climb]) -> Climb:
    """Return the climbs of several batches as one, on the CPU; each rung's spending is summed or averaged."""
    runs = []
    for same in zip(*(part.rungs for part in parts), strict=True):
        survivors = sum(run.survivors for run in same)
        runs.append(
            replace(
                same[0],
                survivors=survivors,
                gradients=max(run.gradients for run in same),
                forwards=max(run.forwards for run in same),
                seconds=sum(run.seconds for run in same),
                chunk=same[-1].chunk,
                skipped=tuple(dict.fromkeys(reason for run in same for reason in run.skipped)),
            )
        )
    return Climb(
        {rule: torch.cat([part.points[rule].cpu() for part in parts]) for rule in parts[0].points},
        {rule: torch.cat([part.margins[rule].cpu() for part in parts]) for rule in parts[0].margins},
        torch.cat([part.broken_by.cpu() for part in parts]),
        torch.cat([part.gradients.cpu() for part in parts]),
        torch.cat([part.forwards.cpu() for part in parts]),
        tuple(runs),
    )
