"""Evidence on disk, scored again on unseen seeds, and challenges to it."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint.data.dataset import to_unit
from squint.evaluation.arrays import read_npz, write_npz
from squint.evaluation.budgets import tiny
from squint.evaluation.evidence import break_with, verify
from squint.evaluation.evidence_files import Evidence, evidence_of, load_evidence, save_evidence
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.scoring_rules import to_bytes
from tests.evaluation.ladder_models import NoisyPair, pair_data

EPS = 10 / 255
Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def model() -> NoisyPair:
    return NoisyPair(scale=0.3)


@pytest.fixture(scope="module")
def data(model: NoisyPair) -> Pair:
    """Images on the grey levels: five within reach of the worst case, five out of it."""
    reach = EPS * float(model.weight.detach().abs().sum())
    near, y = pair_data(model, 5, margin=0.9 * reach)
    far, z = pair_data(model, 5, margin=2.0 * reach, seed=1)
    return (torch.cat([near, far]) * 255).round() / 255, torch.cat([y, z])


@pytest.fixture(scope="module")
def evidence(model: NoisyPair, data: Pair) -> Evidence:
    result = run_ladder(model, data, "10/255", tiny(steps=10), resubmissions=128, counts=(1,), known=False)
    return evidence_of(result)


def challenge(path: Path, data: Pair, **changed: Any) -> Path:
    """Write a challenger's file: the clean images unless told otherwise."""
    images, labels = data
    arrays = {"images": images.numpy(), "index": np.arange(len(images)), "labels": labels.numpy(), **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_evidence_comes_back_whole(evidence: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "evidence.npz"
    save_evidence(path, evidence)
    found = load_evidence(path)
    for name in ("index", "labels", "images", "rung", "correct"):
        assert torch.equal(getattr(found, name), getattr(evidence, name)), name
    assert (found.eps, found.system, found.resubmissions, found.draws) == (EPS, "model", 128, 4)
    assert found.images.dtype == torch.uint8
    first = path.read_bytes()
    save_evidence(path, evidence)
    assert path.read_bytes() == first, "equal evidence gives equal bytes"
    assert [p.name for p in tmp_path.iterdir()] == ["evidence.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) >= {"images", "index", "labels", "eps", "rung"}


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_either_byte_order_are_read(order: str, tmp_path: Path) -> None:
    values = np.array([1, -2, 300], f"{order}i4")
    words = np.array(["a", "bc"], f"{order}U2")
    np.savez(tmp_path / "a.npz", values=values, words=words)
    read = read_npz(tmp_path / "a.npz")
    assert torch.from_numpy(read["values"]).tolist() == [1, -2, 300]
    assert read["words"].tolist() == ["a", "bc"]


def test_verification_agrees_on_unseen_seeds(model: NoisyPair, data: Pair, evidence: Evidence) -> None:
    found = verify(model, data, evidence, seed=99, resubmissions=256)
    assert found.agrees
    assert found.n == 10
    assert found.ci95[0] <= found.accuracy <= found.ci95[1]
    assert 0.5 <= found.accuracy < 0.9
    assert found == verify(model, data, evidence, seed=99, resubmissions=256, batch_size=100)
    assert found != verify(model, data, evidence, seed=98, resubmissions=256)


def test_verification_notices_another_model(data: Pair, evidence: Evidence) -> None:
    other = NoisyPair(scale=0.3)
    with torch.no_grad():
        other.weight.neg_()
    assert not verify(other, data, evidence, seed=99).agrees


def test_another_number_of_draws_is_not_held_against_the_saved_figure(
    model: NoisyPair, data: Pair, evidence: Evidence, tmp_path: Path
) -> None:
    assert verify(model, data, evidence, seed=99, draws=1).agrees is None
    single = replace(evidence, draws=1)
    assert verify(model, data, single, seed=99, draws=1).agrees is not None
    asked = verify(model, data, single, seed=99)
    assert asked == verify(model, data, single, seed=99, draws=1)
    save_evidence(tmp_path / "older.npz", replace(evidence, draws=None))
    older = load_evidence(tmp_path / "older.npz")
    assert older.draws is None
    assert verify(model, data, older, seed=99) == verify(model, data, evidence, seed=99)


def test_a_stronger_challenge_beats_a_weak_record(model: NoisyPair, data: Pair, tmp_path: Path) -> None:
    x, y = data
    worst = model.worst(x, y, EPS)
    weak = Evidence(
        torch.arange(10), y, (x * 255).round().to(torch.uint8), y * 0 - 1, torch.ones(10), 64, EPS, "model"
    )
    save_evidence(tmp_path / "weak.npz", weak)
    path = challenge(tmp_path / "mine.npz", data, images=worst.numpy())
    found = break_with(model, data, path, eps="10/255", record=tmp_path / "weak.npz")
    assert found.beats_record
    assert found.record_accuracy == 1.0
    assert found.accuracy < 0.9
    assert found.difference_ci95 is not None
    assert found.difference_ci95[1] < 0


def test_the_same_points_do_not_beat_the_record(
    model: NoisyPair, data: Pair, evidence: Evidence, tmp_path: Path
) -> None:
    path = challenge(tmp_path / "copy.npz", data, images=evidence.images.numpy())
    assert not break_with(model, data, path, eps="10/255", record=evidence).beats_record
    alone = break_with(model, data, path, eps="10/255")
    assert alone.record_accuracy is None
    assert not alone.beats_record


def test_a_challenge_may_cover_some_images(
    model: NoisyPair, data: Pair, evidence: Evidence, tmp_path: Path
) -> None:
    x, y = data
    rows = torch.tensor([7, 2])
    path = challenge(
        tmp_path / "two.npz",
        data,
        images=model.worst(x, y, EPS)[rows].double().numpy(),
        index=rows.numpy().astype(np.uint16),
        labels=y[rows].numpy().astype(np.int32),
    )
    found = break_with(model, data, path, eps=EPS, record=evidence)
    assert found.n == 2
    assert found.record_accuracy == pytest.approx(found.accuracy, abs=0.2)


def test_bytes_have_half_a_level_of_grace_and_floats_have_none(
    model: NoisyPair, data: Pair, tmp_path: Path
) -> None:
    x, y = data
    off = (x + 0.4 / 255).clamp(0, 1)  # clean images between the grey levels
    worst = model.worst(off, y, EPS)
    nearest = (worst * 255).round().to(torch.uint8)
    assert float((to_unit(nearest) - off).abs().max()) > EPS + 1e-4
    break_with(model, (off, y), challenge(tmp_path / "bytes.npz", data, images=nearest.numpy()), eps=EPS)
    path = challenge(tmp_path / "floats.npz", data, images=to_unit(nearest).numpy())
    with pytest.raises(InputError, match=r"image \d+ lies 0\.04\d+ from the clean one; allowed: eps 10/255"):
        break_with(model, (off, y), path, eps=EPS)
    over = (to_bytes(worst, off, EPS).int() + 1).clamp(0, 255).to(torch.uint8)
    with pytest.raises(InputError, match=r"\+ 1/510 for rounding to bytes"):
        break_with(model, (off, y), challenge(tmp_path / "over.npz", data, images=over.numpy()), eps=EPS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "has no array 'images'; it has index, labels"),
        ({"labels": None}, "has no array 'labels'"),
        ({"images": np.zeros((10, 16), np.float32)}, r"images have shape \(10, 16\)"),
        (
            {"images": np.zeros((10, 1, 4, 5), np.float32)},
            r"images of shape \(1, 4, 5\); the data's: \(1, 4, 4\)",
        ),
        ({"images": np.zeros((10, 1, 4, 4), np.int32)}, "images have dtype torch.int32"),
        ({"images": np.full((10, 1, 4, 4), np.nan, np.float32)}, "NaN"),
        ({"images": np.full((10, 1, 4, 4), 1.5, np.float32)}, r"outside \[0, 1\]"),
        ({"images": np.full((10, 1, 4, 4), "a")}, "images has dtype <U1; allowed: numbers"),
        ({"index": np.arange(9)}, r"index has shape \(9,\)"),
        ({"index": np.zeros(10, np.int64)}, "index names an image twice"),
        ({"index": np.arange(10) + 1}, r"names images 1\.\.10; allowed: 0\.\.9"),
        ({"index": np.arange(10) - 1}, r"names images -1\.\.8"),
        ({"labels": np.full(10, 3)}, r"labels image 0 3; its label is \d"),
        ({"labels": np.zeros(10)}, "labels has shape"),
        ({"images": np.zeros((10, 1, 4, 4), np.float32)}, r"image \d lies 0\.\d+ from the clean one"),
    ],
)
def test_a_bad_challenge_is_refused_in_one_line(
    model: NoisyPair, data: Pair, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        break_with(model, data, challenge(tmp_path / "bad.npz", data, **changed), eps=EPS)
    assert "\n" not in str(error.value)


def test_a_record_that_cannot_be_compared_is_refused(
    model: NoisyPair, data: Pair, evidence: Evidence, tmp_path: Path
) -> None:
    path = challenge(tmp_path / "clean.npz", data)
    for other in ("2/255", "64/255"):
        with pytest.raises(InputError, match="the record was made at eps 10/255"):
            break_with(model, data, path, eps=other, record=evidence)
    part = Evidence(
        evidence.index[:4],
        evidence.labels[:4],
        evidence.images[:4],
        evidence.rung[:4],
        evidence.correct[:4],
        128,
        EPS,
        "model",
    )
    with pytest.raises(InputError, match="the record holds no image 4"):
        break_with(model, data, path, eps=EPS, record=part)


def test_evidence_for_other_data_is_refused(model: NoisyPair, data: Pair, evidence: Evidence) -> None:
    x, y = data
    with pytest.raises(InputError, match="its label is"):
        verify(model, (x, 1 - y), evidence, seed=1)
    with pytest.raises(InputError, match="from the clean one"):
        verify(model, (1 - x, y), evidence, seed=1)
    with pytest.raises(InputError, match=r"allowed: 0\.\.3"):
        verify(model, (x[:4], y[:4]), evidence, seed=1)


def _members(count: int) -> bytes:
    """A zip file of so many members without content."""
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    end = struct.pack("<4H2LH", 0, 0, count, count, len(entry) * count, 0, 0)
    return entry * count + b"PK\x05\x06" + end


def test_files_that_are_no_arrays_are_refused(tmp_path: Path, evidence: Evidence) -> None:
    path = tmp_path / "file.npz"
    with pytest.raises(InputError, match="does not exist"):
        read_npz(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="no whole npz file"):
        read_npz(path)
    np.savez(path, images=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="holds Python objects"):
        read_npz(path)
    # A list of members that is all of a file, long enough for zipfile to take its time with.
    path.write_bytes(_members(30_000))
    with pytest.raises(InputError, match=r"no whole npz file: it wants 1410000 bytes at once"):
        read_npz(path)
    save_evidence(path, evidence)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="no whole npz file"):
        read_npz(path)
    broken = bytearray(whole)
    third = len(whole) // 3
    # More than a header between two arrays, whose dates nobody reads.
    broken[third : third + 200] = bytes(byte ^ 255 for byte in broken[third : third + 200])
    path.write_bytes(bytes(broken))
    with pytest.raises(InputError):
        load_evidence(path)


def test_a_file_that_claims_too_much_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    write_npz(path, {"images": np.zeros(100_000, np.uint8)})
    with pytest.raises(InputError, match=": 64 arrays of 1000 bytes together"):
        read_npz(path, max_bytes=1_000)
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 10)
    with pytest.raises(InputError, match="claims shape"):
        read_npz(path)


def test_evidence_of_another_format_is_refused(tmp_path: Path, evidence: Evidence) -> None:
    path = tmp_path / "evidence.npz"
    save_evidence(path, evidence)
    arrays = read_npz(path)
    for name, value, message in (
        ("format", np.asarray(9), "evidence format 9; allowed: 1"),
        ("eps", np.asarray(1.5), r"eps is 1\.5"),
        ("correct", np.full(10, 2.0), r"correct has values outside"),
        ("rung", np.zeros(3, np.int64), r"rung has shape \(3,\)"),
        ("resubmissions", np.zeros(3), "needed: one number"),
    ):
        write_npz(path, {**arrays, name: value})
        with pytest.raises(InputError, match=message):
            load_evidence(path)
