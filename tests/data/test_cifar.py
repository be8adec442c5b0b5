from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint.data import cifar as module
from squint.data import load
from squint.data.cifar import CIFAR10, CIFAR100, cifar10, cifar100

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE = tuple(f"fine {i}" for i in range(100))


def record(labels: tuple[int, ...], image: Tensor) -> bytes:
    """Return one record of the official layout: label bytes, then the red, green and blue planes."""
    return bytes(labels) + bytes(image.flatten().tolist())


def write_cifar10(folder: Path, per_file: int = 20) -> tuple[Tensor, Tensor]:
    """Write a tiny set and return all its images and labels, the test file last."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [*CIFAR10.train, CIFAR10.test]
    n = per_file * len(files)
    x = torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.arange(n) % 10
    for k, name in enumerate(files):
        rows = range(k * per_file, (k + 1) * per_file)
        (folder / name).write_bytes(b"".join(record((int(y[i]),), x[i]) for i in rows))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return x, y


def write_cifar100(folder: Path) -> tuple[Tensor, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    x = torch.randint(0, 256, (300, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    y = torch.arange(300) % 100
    for name, rows in (("train.bin", range(200)), ("test.bin", range(200, 300))):
        (folder / name).write_bytes(b"".join(record((int(y[i]) // 5, int(y[i])), x[i]) for i in rows))
    (folder / "fine_label_names.txt").write_text("\n".join(FINE))
    return x, y


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10_from_the_folder_or_its_parent(tmp_path: Path, inside: str) -> None:
    x, y = write_cifar10(tmp_path / inside)
    train, test = cifar10(tmp_path, download=False)
    assert torch.equal(train.images, x[:100])
    assert torch.equal(train.labels, y[:100])
    assert torch.equal(test.images, x[100:])
    assert torch.equal(test.labels, y[100:])
    assert train.class_names == NAMES


@pytest.mark.parametrize("inside", ["", "cifar-100-binary"])
def test_cifar100_uses_the_fine_labels(tmp_path: Path, inside: str) -> None:
    x, y = write_cifar100(tmp_path / inside)
    train, test = cifar100(tmp_path, download=False)
    assert torch.equal(train.images, x[:200])
    assert torch.equal(train.labels, y[:200])
    assert torch.equal(test.images, x[200:])
    assert torch.equal(test.labels, y[200:])
    assert train.class_names == FINE


def test_load_makes_three_splits(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    splits = load("cifar10", tmp_path, validation=10, download=False)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (90, 10, 20)
    assert splits.validation.labels.bincount().tolist() == [1] * 10
    write_cifar100(tmp_path)
    assert load("cifar100", str(tmp_path), download=False).train.num_classes == 100


def test_a_missing_file_names_the_folder_and_the_option(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(InputError) as caught:
        cifar10(tmp_path, download=False)
    for part in (str(tmp_path), "data_batch_3.bin", "--data-dir"):
        assert part in str(caught.value)
    assert "data_batch_2.bin" not in str(caught.value)
    with pytest.raises(InputError, match=r"no cifar100 in .*train\.bin"):
        cifar100(tmp_path, download=False)


@pytest.mark.parametrize(
    ("cut", "message"), [(0, "is empty"), (-1, r"whole records of 3073 bytes"), (3072, "whole records")]
)
def test_empty_and_truncated_files_are_named(tmp_path: Path, cut: int, message: str) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=message) as caught:
        cifar10(tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_a_file_with_too_many_records_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    with (tmp_path / "test_batch.bin").open("wb") as out:
        out.truncate(3073 * 10_001)
    with pytest.raises(InputError, match="10000 at most"):
        cifar10(tmp_path, download=False)


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[: 3073 * 7] + record((10,), torch.zeros(3, 32, 32, dtype=torch.uint8)))
    with pytest.raises(InputError, match=r"data_batch_1\.bin: label 10 of image 7; allowed: 0\.\.9"):
        cifar10(tmp_path, download=False)
    write_cifar100(tmp_path)
    (tmp_path / "test.bin").write_bytes(record((20, 0), torch.zeros(3, 32, 32, dtype=torch.uint8)))
    with pytest.raises(InputError, match=r"test\.bin: label 20 of image 0; allowed: 0\.\.19"):
        cifar100(tmp_path, download=False)


@pytest.mark.parametrize("names", ["", "a\nb\n", "\n".join(["cat"] * 10), "x" * 70_000])
def test_class_names_must_be_ten(tmp_path: Path, names: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta.txt").write_text(names)
    with pytest.raises(InputError, match="expected 10"):
        cifar10(tmp_path, download=False)


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for path in folder.iterdir():
            tar.add(path, f"cifar-10-batches-bin/{path.name}")
        info = tarfile.TarInfo("cifar-10-batches-bin/../../../evil")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))


def test_a_checked_archive_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = write_cifar10(tmp_path / "source")
    home = tmp_path / "a" / "b" / "home"
    home.mkdir(parents=True)
    archive = home / "cifar-10-binary.tar.gz"
    pack(tmp_path / "source", archive)
    remote = replace(CIFAR10.archive, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(module, "CIFAR10", replace(CIFAR10, archive=remote))
    for _ in range(2):
        train, _ = cifar10(home, download=False)
        assert torch.equal(train.images, x[:100])
        archive.unlink(missing_ok=True)
    assert sorted(p.name for p in (home / "cifar-10-batches-bin").iterdir()) == sorted(CIFAR10.files)
    assert not list(tmp_path.rglob("evil"))


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(InputError) as caught:
        cifar100(tmp_path, download=False)
    assert CIFAR100.archive.sha256 in str(caught.value)
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)


def test_the_published_archives_are_well_described() -> None:
    for layout in (CIFAR10, CIFAR100):
        assert layout.archive.url.startswith("https://www.cs.toronto.edu/")
        assert len(layout.archive.sha256) == 64
        assert all(name.startswith(f"{layout.folder}/") for name in layout.members())
