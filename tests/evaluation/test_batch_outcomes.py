"""A folder of batches: files that are missing, exchanged or damaged say which one to remove."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from squint._checks import InputError
from squint.evaluation.arrays import MAX_RATIO, SMALL_BYTES, read_npz, write_npz
from squint.evaluation.batch_outcomes import BatchOutcomes

CONFIGURATION = {"system": "noisy", "seed": 0}


def filled(folder: Path) -> BatchOutcomes:
    """Return a folder with two finished batches."""
    store = BatchOutcomes(folder, CONFIGURATION)
    for batch in range(2):
        store.save(batch, {"points": np.full((2, 3), batch, np.float32)}, {"seconds": batch})
    return store


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for batch in range(2):
        found = store.load(batch)
        assert found is not None
        assert found[0]["points"].tolist() == [[batch] * 3] * 2
        assert found[1] == {"seconds": batch}
    assert store.load(2) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "batch-00000.npz").unlink(), r"batch-00000\.npz does not exist"),
        (lambda f: (f / "batch-00000.npz").write_bytes(b"x"), r"batch-00000\.npz is no whole npz file"),
        (lambda f: (f / "batch-00000.json").write_text("{"), r"batch-00000\.json is not readable JSON"),
        (lambda f: (f / "batch-00001.npz").rename(f / "batch-00000.npz"), "is not the file that was written"),
        (lambda f: (f / "batch-00001.json").rename(f / "batch-00000.json"), "the outcome of batch 0"),
    ],
)
def test_missing_and_exchanged_files_say_what_to_remove(damage: object, said: str, tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert callable(damage)
    damage(tmp_path)
    again = rf"remove {tmp_path}/batch-00000\.json to have batch 0 attacked again"
    with pytest.raises(InputError, match=f"{said}.*; {again}"):
        store.load(0)


def test_notes_from_before_there_were_digests_are_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = tmp_path / "batch-00000.json"
    note = json.loads(path.read_text())
    path.write_text(json.dumps({"hash": note["hash"], "outcome": note["outcome"]}))
    assert store.load(0) is not None


def test_arrays_that_unfold_out_of_proportion_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, {"a": np.zeros(SMALL_BYTES - 1000, np.uint8)})
    assert path.stat().st_size * MAX_RATIO < SMALL_BYTES
    assert read_npz(path)["a"].shape == (SMALL_BYTES - 1000,)
    write_npz(path, {"a": np.zeros(SMALL_BYTES, np.uint8)})  # and a header
    with pytest.raises(InputError, match="allowed for a file of its length: 64 arrays"):
        read_npz(path)
