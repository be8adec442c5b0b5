from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from squint import _files
from squint._checks import InputError


def test_bytes_text_and_json_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    content = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    _files.write_json(path, content)
    assert _files.read_json(path) == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    _files.write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    metadata = {name: f"ü{name}" for name in "gfedcba"}
    tensors = {"b": torch.arange(5), "a": torch.ones(2, 3)}
    written = set()
    for _ in range(10):
        _files.write_tensors(tmp_path / "t", tensors, metadata)
        written.add((tmp_path / "t").read_bytes())
    assert len(written) == 1
    found, kept = _files.read_tensors(tmp_path / "t")
    assert kept == metadata
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_crash_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    _files.write_text(path, "old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        _files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "a", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot write"):
            _files.write_text(path, "new")
    for content in ({"a": float("nan")}, {"a": object()}, {(1, 2): 3}):
        with pytest.raises(InputError, match="cannot write"):
            _files.write_json(tmp_path / "b", content)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_links_are_followed_and_special_files_left_alone(tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "target", tmp_path / "link", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    _files.write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(InputError, match="cannot write"):
        _files.write_bytes(tmp_path / "round" / "file", b"x")
    os.mkfifo(pipe)
    for special in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="it is there and is no plain file"):
            _files.write_bytes(special, b"x")
    assert pipe.is_fifo()


def test_json_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with pytest.raises(InputError, match="does not exist"):
        _files.read_json(path)
    for content in (b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not readable"):
            _files.read_json(path)
    with pytest.raises(InputError, match="no plain file"):
        _files.read_json(tmp_path)
    monkeypatch.setattr(_files, "MAX_JSON_BYTES", 10)
    with pytest.raises(InputError, match="larger"):
        _files.read_json(path)


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "double": base.double(),
        "view": base[:, 1:3],
        "same": base[:, 1:3],
        "transposed": base.T,
        "half": base.bfloat16(),
        "channels": base.view(1, 4, 2, 3).to(memory_format=torch.channels_last),
        "flag": torch.tensor(True),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "parameter": torch.nn.Parameter(base),
    }
    _files.write_tensors(tmp_path / "t", tensors, {"a": "ü"})
    found, metadata = _files.read_tensors(tmp_path / "t")
    assert metadata == {"a": "ü"}
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize(
    "value",
    ["text", torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex128)],
)
def test_what_is_no_plain_tensor_is_named(value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        _files.write_tensors(tmp_path / "t", {"good": torch.zeros(1), "bad": value}, {})
    assert list(tmp_path.iterdir()) == []


def test_tensor_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(InputError, match="does not exist or is not a file"):
        _files.read_tensors(path)
    with pytest.raises(InputError, match="does not exist or is not a file"):
        _files.read_tensors(tmp_path)
    _files.write_tensors(path, {"a": torch.zeros(100)}, {})
    whole = path.read_bytes()
    huge = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    for content in (
        b"",
        b"PK\x03\x04 a pickle in a zip",
        whole[:5],
        whole[:-1],
        whole + b"x",
        (2**60).to_bytes(8, "little") + whole[8:],
        len(huge).to_bytes(8, "little") + huge,
        b"\x80\x04\x95" * 40,
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="no whole safetensors file"):
            _files.read_tensors(path)


def test_files_of_too_many_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("[" + "[]," * 500_000 + "[]]")
    with pytest.raises(InputError, match="more than 500,000 brackets"):
        _files.read_json(path)
    path.write_text("{" + ",".join(f'"{k:x}":0' for k in range(800_001)) + "}")
    with pytest.raises(InputError, match="more than 800,000 colons"):
        _files.read_json(path)
    for text, message in (
        ("x" * (2**22 + 1), "holds metadata of more than 4 MiB"),
        ("[]" * 500_001, "brackets"),
    ):
        _files.write_tensors(path, {}, {"squint": text})
        with pytest.raises(InputError, match=message):
            _files.read_tensors(path)
    monkeypatch.setattr(_files, "MAX_TENSORS", 2)
    _files.write_tensors(path, {name: torch.zeros(1) for name in "abc"}, {})
    with pytest.raises(InputError, match="holds 3 tensors; allowed: up to 2"):
        _files.read_tensors(path)
    path.write_bytes((2**25).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="no whole safetensors file: it declares a header of 33554432 bytes"):
        _files.read_tensors(path)


def test_special_files_are_not_read(tmp_path: Path) -> None:
    """A pipe would block and a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="no plain file"):
            _files.read_json(path)


def test_folders_that_cannot_be_flushed_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    _files.write_text(tmp_path / "new" / "a", "x")
    assert (tmp_path / "new" / "a").read_text() == "x"
