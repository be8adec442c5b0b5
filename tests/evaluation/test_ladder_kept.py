"""Batches of the ladder whose notes were changed by hand: refused, with the folder that is to be removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from squint._checks import InputError
from squint.evaluation.arrays import read_npz, write_npz
from squint.evaluation.batch_outcomes import digest_of
from squint.evaluation.budgets import tiny
from squint.evaluation.ladder_run import run_ladder
from tests.evaluation.ladder_models import NoisyPair, pair_data

Change = Callable[[dict[str, Any], dict[str, Any]], object]


def climb(folder: Path) -> dict[str, Any]:
    model = NoisyPair()
    found = run_ladder(
        model,
        pair_data(model, 2, margin=0.4),
        0.05,
        tiny(2),
        counts=(1, 2),
        resubmissions=8,
        folder=folder,
        known=False,
    )
    return found.summary()


def scores(plain: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plain["scores"]["deployed"]
    return found


CHANGES: list[Change] = [
    lambda plain, _: plain.pop("rungs"),
    lambda plain, _: plain.update(rungs=[1]),
    lambda plain, _: plain["rungs"][0].update(name=["<b>"]),
    lambda plain, _: plain["rungs"][0].update(gradients=-1),
    lambda plain, _: plain["rungs"][0].update(seconds="1"),
    lambda plain, _: plain.update(seconds=float("inf")),
    lambda plain, _: scores(plain).update(resubmissions=0),
    lambda plain, _: scores(plain).update(resubmissions=10**400),
    lambda plain, _: scores(plain).update(draws=True),
    lambda plain, _: scores(plain).update(random=None),
    lambda plain, _: plain["sweep"][0].update(draws=3),
    lambda _, arrays: arrays.pop("point_single"),
    lambda _, arrays: arrays.update(point_single=np.zeros((2, 1, 4, 5), np.float32)),
    lambda _, arrays: arrays.update(point_uint8=np.zeros((2, 1, 4, 4), np.float32)),
    lambda _, arrays: arrays.update(broken_by=np.zeros(3, np.int64)),
    lambda _, arrays: arrays.update(deployed_errors=np.array(["a", "b"])),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_batch_that_is_no_outcome_is_refused(change: Change, tmp_path: Path) -> None:
    first = climb(tmp_path)
    assert climb(tmp_path) == first
    note, file = tmp_path / "batch-00000-of-2.json", tmp_path / "batch-00000-of-2.npz"
    held, arrays = json.loads(note.read_text()), dict(read_npz(file))
    change(held["outcome"], arrays)
    # Whoever changes the files on purpose writes the hash that belongs to them.
    write_npz(file, arrays)
    note.write_text(json.dumps(held | {"arrays": digest_of(arrays)}))
    with pytest.raises(
        InputError, match=r"holds a batch that is no outcome of the ladder .*remove that folder"
    ):
        climb(tmp_path)


def test_an_error_of_the_ladders_own_is_not_blamed_on_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from squint.evaluation import ladder_run

    def fail(*_: object) -> None:
        raise KeyError("scores")

    monkeypatch.setattr(ladder_run, "assemble", fail)
    model = NoisyPair()
    x, y = pair_data(model, 2, margin=0.4)
    assert isinstance(x, torch.Tensor)
    with pytest.raises(KeyError, match="scores"):
        run_ladder(model, (x, y), 0.05, tiny(2), counts=(1,), resubmissions=8, known=False)
