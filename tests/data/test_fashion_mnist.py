from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint.data import fashion_mnist as module
from squint.data import load
from squint.data.download import RemoteFile
from squint.data.fashion_mnist import FILES, fashion_mnist, read_idx

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


def idx(shape: tuple[int, ...], body: bytes, *, magic: int | None = None) -> bytes:
    number = 0x0800 + len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", number, *shape) + body


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


def write_set(folder: Path) -> dict[str, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    written: dict[str, Tensor] = {}
    for images, labels, n in ((TRAIN_IMAGES, TRAIN_LABELS, 40), (TEST_IMAGES, TEST_LABELS, 20)):
        x = torch.randint(0, 256, (n, 28, 28), generator=generator, dtype=torch.uint8)
        y = (torch.arange(n) % 10).to(torch.uint8)
        write(folder / images, idx((n, 28, 28), bytes(x.flatten().tolist())))
        write(folder / labels, idx((n,), bytes(y.tolist())))
        written |= {images: x, labels: y}
    return written


@pytest.mark.parametrize("inside", ["", "fashion-mnist"])
def test_the_official_layout_is_read(tmp_path: Path, inside: str) -> None:
    written = write_set(tmp_path / inside)
    train, test = fashion_mnist(tmp_path, download=False)
    for part, images, labels in ((train, TRAIN_IMAGES, TRAIN_LABELS), (test, TEST_IMAGES, TEST_LABELS)):
        assert torch.equal(part.images[:, 0], written[images])
        assert torch.equal(part.labels, written[labels].long())
    assert train.num_classes == 10
    assert train.class_names[9] == "Ankle boot"


def test_load_holds_a_tenth_out_for_validation(tmp_path: Path) -> None:
    write_set(tmp_path)
    splits = load("fashion-mnist", tmp_path, download=False)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 4, 20)
    assert splits.train.name == "fashion-mnist"


def test_a_missing_file_names_the_folder_and_the_option(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / TEST_LABELS).unlink()
    with pytest.raises(InputError) as caught:
        fashion_mnist(tmp_path, download=False)
    for part in (str(tmp_path), TEST_LABELS, "--data-dir"):
        assert part in str(caught.value)
    assert TRAIN_IMAGES not in str(caught.value)


def test_only_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "fashion-mnist")
    file = tmp_path / "fashion-mnist" / TEST_LABELS
    content = file.read_bytes()
    file.unlink()
    asked = []

    def fetch(remote: RemoteFile, folder: Path) -> Path:
        asked.append(remote.name)
        path = folder / remote.name
        path.write_bytes(content)
        return path

    monkeypatch.setattr(module, "fetch", fetch)
    assert len(fashion_mnist(tmp_path)[1]) == 20
    assert asked == [TEST_LABELS]


def test_the_published_files_are_well_described() -> None:
    for name, remote in FILES.items():
        assert remote.name == name
        assert remote.url.startswith("https://")
        assert len(remote.sha256) == 64


BODY = bytes(range(12))
BROKEN: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "is empty"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "not gzip": (b"hello, this is text", "cannot be read as gzip"),
    "cut gzip": (gzip.compress(idx((3, 2, 2), BODY))[:-9], "cannot be read as gzip"),
    "damaged gzip": (gzip.compress(idx((3, 2, 2), BODY))[:-8] + bytes(8), "cannot be read as gzip"),
    "cut header": (gzip.compress(idx((3, 2, 2), b"")[:9]), "truncated inside its header"),
    "labels, not images": (gzip.compress(idx((12,), BODY)), "expected 0x00000803"),
    "little endian": (gzip.compress(struct.pack("<4I", 0x0803, 3, 2, 2) + BODY), "magic number 0x03080000"),
    "cut content": (gzip.compress(idx((3, 2, 2), BODY[:-1])), "is truncated: it declares shape"),
    "extra content": (gzip.compress(idx((3, 2, 2), BODY + b"x")), "is too long"),
    "nothing": (gzip.compress(idx((0, 2, 2), b"")), "it holds nothing"),
    "absurd sizes": (gzip.compress(idx((2**32 - 1,) * 3, BODY)), "more than a file of its length can hold"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_are_named(tmp_path: Path, fault: str) -> None:
    content, message = BROKEN[fault]
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_idx(path, 3)
    assert str(caught.value).startswith(str(path))


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx((3, 2, 2), BODY) + bytes(50_000_000)))
    with pytest.raises(InputError, match="too long"):
        read_idx(path, 3)


def test_a_highly_compressible_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "zeros.gz"
    path.write_bytes(gzip.compress(idx((1000, 28, 28), bytes(784_000)), 9))
    assert not read_idx(path, 3).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            TRAIN_LABELS,
            idx((40,), bytes([*range(10)] * 3 + [10] * 10)),
            "label 10 of image 30; allowed: 0..9",
        ),
        (TRAIN_LABELS, idx((39,), bytes(39)), "39 labels for 40 images"),
        (TRAIN_IMAGES, idx((40, 8, 8), bytes(40 * 64)), r"images of \(8, 8\)"),
    ],
)
def test_inconsistent_sets_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_set(tmp_path)
    write(tmp_path / name, content)
    with pytest.raises(InputError, match=message):
        fashion_mnist(tmp_path, download=False)


def test_the_full_set_where_a_checkout_has_it_beside_it() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (folder / "fashion-mnist").is_dir():
        pytest.skip("no copy of the full set beside this checkout")
    train, test = fashion_mnist(folder, download=False)
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    # Channel mean and standard deviation of the published training images.
    pixels = train.float_images()
    assert float(pixels.mean()) == pytest.approx(0.2860, abs=5e-5)
    assert float(pixels.std()) == pytest.approx(0.3530, abs=1e-4)
