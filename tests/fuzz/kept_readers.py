"""Readers of what long work keeps of itself, each with files that it reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from squint._files import write_json
from squint.commands.detect import kept_so_far
from squint.evaluation.batch_outcomes import BatchOutcomes
from squint.evaluation.budgets import tiny as tiny_budget
from squint.evaluation.detection.kept import KeptPoints
from squint.evaluation.kept_attacks import KeptAttacks
from squint.evaluation.ladder_kept import assembled
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.plane_kept import KeptRows
from squint.evaluation.plane_profile import PlaneRow, profile_of
from squint.evaluation.scoring import Scores
from tests.evaluation.ladder_models import NoisyPair, pair_data
from tests.fuzz.data_readers import Reader
from tests.fuzz.samples import SYSTEM, images
from tests.report.detection_data import detection
from tests.report.detection_data import record as detection_record


def attacks(folder: Path) -> list[Reader]:
    place, order = folder / "attacks", torch.arange(3)
    scores = Scores(order, 4, order / 4, 2, True, torch.zeros_like(order))
    kept = KeptAttacks(place, lambda: {"system": SYSTEM}, 1)
    kept.part(1, 0, lambda: (images(3), scores))

    def read() -> None:
        again = KeptAttacks(place, lambda: {"system": SYSTEM}, 1)
        (_, found), seconds = again.part(1, 0, lambda: (images(3), scores))
        assert found.accuracy <= 1
        assert 0 <= seconds < float("inf")

    return [Reader("attacks", place, tuple(sorted(place.iterdir())), read)]


def plane(folder: Path) -> list[Reader]:
    place = folder / "plane"
    row = PlaneRow(
        SYSTEM, "clean", "0", None, 0.1, 0.0, (0.0, 0.2), 0.5, (0.1, 0.9), 3, "x", "predictions", 2
    )
    KeptRows(place, lambda: {"system": SYSTEM}).rows(0, lambda: [row])

    def read() -> None:
        profile_of(KeptRows(place, lambda: {"system": SYSTEM}).rows(0, lambda: [row]))

    return [Reader("plane", place, tuple(sorted(place.iterdir())), read)]


def ladder(folder: Path) -> list[Reader]:
    place = folder / "ladder"
    configuration = {"system": SYSTEM, "seed": 0, "budget": {"name": "quick"}}
    store = BatchOutcomes(place, configuration)
    arrays = {"points": np.zeros((3, 1, 8, 8), np.float32), "broken_by": np.array([0, 1, -1])}
    for batch in range(2):
        store.save(batch, arrays, {"rungs": [], "seconds": 1.0})

    def read() -> None:
        again = BatchOutcomes(place, configuration)
        for batch in range(3):
            again.load(batch)

    return [Reader("ladder", place, tuple(sorted(place.iterdir())), read)]


def climbed(folder: Path) -> list[Reader]:
    place, model = folder / "climbed", NoisyPair(4)
    x, y = pair_data(NoisyPair(16), 2, margin=0.4)
    x = x[:, :, :2, :2].contiguous()
    found = run_ladder(model, (x, y), 0.05, tiny_budget(2), counts=(1, 2), resubmissions=8, folder=place)

    def read() -> None:
        again = BatchOutcomes(place, found.configuration, (x, y)).load("batch-00000-of-2")
        if again is not None:
            assembled(found.configuration, y, x, [again], place).summary()

    # The note says which arrays belong to it: damaged, those are refused before they are looked at.
    return [Reader("climbed", place, (place / "batch-00000-of-2.json",), read)]


def detected(folder: Path) -> list[Reader]:
    path = folder / "detection.json"
    write_json(path, detection(detection_record(SYSTEM, "24/255")))

    def read() -> None:
        found = kept_so_far(path, ())
        {(each["system"], each["score"], each["eps"]) for each in (*found.records, *found.curves)}

    return [Reader("detected", folder, (path,), read)]


def kept_points(folder: Path) -> list[Reader]:
    kept, names = KeptPoints(folder, reuse=True), (SYSTEM, "pgd", "24/255")
    kept.write(names, "settings", images(2), 1.0)
    (path,) = folder.iterdir()
    return [Reader("kept points", folder, (path,), partial(kept.read, names, "settings"))]
