from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from squint._checks import InputError
from squint.data import ImageData, load, load_folder


def picture(value: int, *, gray: bool = False, size: tuple[int, int] = (5, 4)) -> Image.Image:
    """Return an image of one colour: (value, 7, 9), or value where it is gray; size is (width, height)."""
    return Image.new("L", size, value) if gray else Image.new("RGB", size, (value, 7, 9))


def write_classes(root: Path, counts: dict[str, int], *, gray: bool = False, first: int = 0) -> None:
    """Write `counts` images a class; every image of the folder has a value of its own."""
    value = first
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(value, gray=gray).save(root / name / f"{i:03}.png")
            value += 1


def values(data: ImageData) -> list[int]:
    numbers: list[int] = data.images[:, 0, 0, 0].tolist()
    return numbers


def test_classes_are_sorted_folders_and_every_image_lands_in_one_split(tmp_path: Path) -> None:
    write_classes(tmp_path, {"dog": 20, "cat": 10})
    splits = load_folder(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (22, 2, 6)
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(v for part in parts for v in values(part)) == list(range(30))
    for part in parts:
        assert part.class_names == ("cat", "dog")
        assert part.shape == (3, 4, 5)
        assert part.labels.tolist() == [int(v < 20) for v in values(part)]
        assert (part.images[:, 1] == 7).all()
        assert (part.images[:, 2] == 9).all()
    assert splits.test.labels.bincount().tolist() == [2, 4]
    assert splits.train.name == f"folder:{tmp_path.name}"


def test_a_data_folder_may_be_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "sets" / "mine" / "train", {"a": 10, "b": 10})
    write_classes(tmp_path / "sets" / "mine" / "test", {"a": 3, "b": 2}, first=100)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("folder:mine", "~/sets").test) == 5
    assert len(load("folder:~/sets/mine").test) == 5


def test_train_and_test_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    write_classes(tmp_path / "test", {"a": 3, "b": 2}, first=100)
    splits = load_folder(tmp_path, validation=4)
    assert sorted(values(splits.test)) == [100, 101, 102, 103, 104]
    assert splits.test.labels.tolist() == [int(value > 102) for value in values(splits.test)]
    assert (len(splits.train), len(splits.validation)) == (16, 4)


def test_the_first_images_are_of_all_classes(tmp_path: Path) -> None:
    """Attacks take the first images: in the files' order those of a large set are all of one class."""
    write_classes(tmp_path / "train", {"a": 60, "b": 60})
    write_classes(tmp_path / "test", {"a": 60, "b": 60}, first=100)
    splits = load_folder(tmp_path, validation=40)
    for part in (splits.test, splits.train, splits.validation):
        # Of 20 drawn from as many of both classes, fewer than 4 of one come once in 1,000 times.
        assert 4 <= int(part.labels[:20].sum()) <= 16
    again = load_folder(tmp_path, validation=40, seed=1)
    assert torch.equal(again.test.images, splits.test.images), "the test images' order is that of every seed"


def test_a_train_folder_alone_gives_test_images_too(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    assert len(load_folder(tmp_path, test=6).test) == 6


def test_train_can_be_the_name_of_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, {"train": 10, "ship": 10})
    assert load_folder(tmp_path).train.class_names == ("ship", "train")


def test_seeds_move_validation_images_only(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 20, "b": 20})
    first, again, other = (load_folder(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert values(first.validation) == values(again.validation)
    assert values(first.validation) != values(other.validation)
    assert values(first.test) == values(other.test)


def test_load_by_name(tmp_path: Path) -> None:
    write_classes(tmp_path / "set", {"a": 10, "b": 10})
    direct = load_folder(tmp_path / "set", validation=2)
    for splits in (
        load(f"folder:{tmp_path / 'set'}", validation=2),
        load("folder:set", tmp_path, validation=2),
    ):
        assert values(splits.train) == values(direct.train)


def test_formats_hidden_files_and_others(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2})
    for i, suffix in enumerate(("JPG", "jpeg", "webp", "bmp")):
        picture(100 + i).save(tmp_path / "a" / f"x{i}.{suffix}")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / ".cache").mkdir()
    splits = load_folder(tmp_path, validation=0, test=0)
    assert splits.train.labels.bincount().tolist() == [6, 2]


def test_gray_and_colour(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 4, "b": 4}, gray=True)
    gray = load_folder(tmp_path, validation=0, test=0).train
    assert gray.shape == (1, 4, 5)
    assert sorted(values(gray)) == list(range(8))
    colour = load_folder(tmp_path, validation=0, test=0, channels=3).train
    assert torch.equal(colour.images, gray.images.expand(-1, 3, -1, -1))
    picture(50).save(tmp_path / "b" / "colour.png")
    assert load_folder(tmp_path, validation=0, test=0).train.shape == (3, 4, 5)
    assert load_folder(tmp_path, validation=0, test=0, channels=1).train.shape == (1, 4, 5)


def test_pixels_keep_their_places(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    pixels = torch.randint(0, 256, (4, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(np.asarray(pixels)).save(tmp_path / "a" / "000.png")
    train = load_folder(tmp_path, validation=0, test=0).train
    assert torch.equal(train.images[0], pixels.permute(2, 0, 1))


@pytest.mark.parametrize(("size", "shape"), [(8, (3, 8, 8)), ((6, 9), (3, 6, 9))])
def test_resizing(tmp_path: Path, size: Any, shape: tuple[int, int, int]) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    picture(77, size=(50, 30)).save(tmp_path / "b" / "large.png")
    train = load_folder(tmp_path, validation=0, test=0, size=size).train
    assert train.shape == shape
    assert sorted(values(train)) == [0, 1, 2, 3, 4, 5, 77]


@pytest.mark.parametrize(("words", "shape"), [("@8", (3, 8, 8)), ("@6x9", (3, 6, 9)), ("", (3, 4, 5))])
def test_a_name_may_ask_for_another_size(words: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    write_classes(tmp_path / "mine", {"a": 3, "b": 3})
    for name, base in ((f"folder:mine{words}", tmp_path), (f"folder:{tmp_path / 'mine'}{words}", None)):
        found = load(name, base, validation=1)
        expected = load_folder(tmp_path / "mine", validation=1, size=shape[1:])
        assert found.test.shape == shape
        assert torch.equal(found.train.images, expected.train.images)
        assert torch.equal(found.test.images, expected.test.images)


def test_a_folder_of_that_very_name_comes_first(tmp_path: Path) -> None:
    write_classes(tmp_path / "mine@8", {"a": 3, "b": 3})
    assert load(f"folder:{tmp_path / 'mine@8'}").train.shape == (3, 4, 5)
    assert load(f"folder:{tmp_path / 'mine@8'}@6").train.shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mine@0", "size is 0; allowed"),
        ("mine@8x0", "size is 0; allowed"),
        ("mine@99999", "size is 99999; allowed"),
        ("mine@8x", "the size of mine is '8x'; allowed: PATH@32"),
        ("mine@", "the size of mine is ''; allowed"),
        ("mine@-4", "the size of mine is '-4'; allowed"),
        ("other@8x", "no folder .*other@8x"),
        ("@8", "no folder .*@8"),
        ("other@8", "no folder .*other:"),
    ],
)
def test_a_size_that_is_none_is_named(words: str, message: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "mine", {"a": 3, "b": 3})
    with pytest.raises(InputError, match=message):
        load(f"folder:{words}", tmp_path)


def test_differing_sizes_name_the_file(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    picture(77, size=(5, 6)).save(tmp_path / "b" / "tall.png")
    with pytest.raises(InputError, match=r"b/tall\.png is 6x5 pixels .* 4x5; .*@32 \(size=32\)"):
        load_folder(tmp_path)


def test_broken_images_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    broken = tmp_path / "b" / "001.png"
    content = broken.read_bytes()
    for damaged in (b"", b"no image", content[:-30]):
        broken.write_bytes(damaged)
        with pytest.raises(InputError, match=r"b/001\.png cannot be (read|decoded)") as caught:
            load_folder(tmp_path)
        assert "\n" not in str(caught.value)


def test_images_that_together_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    monkeypatch.setattr(torch, "empty", _none_left)
    with pytest.raises(InputError, match=r"^6 images of 16384x16384 pixels .*a/000\.png\) take 4\.5 GiB"):
        load_folder(tmp_path, size=2**14)


def _none_left(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4831838208 bytes")


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png has pixels of kind 'I;16'"):
        load_folder(tmp_path)


def test_images_beyond_pillows_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(InputError, match=r"a/000\.png cannot be read as an image"):
        load_folder(tmp_path)


def test_folders_that_hold_no_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        load_folder(tmp_path / "missing")
    with pytest.raises(InputError, match="0 class folders"):
        load_folder(tmp_path)
    write_classes(tmp_path, {"a": 3})
    with pytest.raises(InputError, match="1 class folders"):
        load_folder(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"/b holds no images; looked for \*\.png"):
        load_folder(tmp_path)


def test_test_classes_must_be_the_training_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 3, "b": 3})
    write_classes(tmp_path / "test", {"a": 3})
    with pytest.raises(InputError, match=r"test/b holds no images"):
        load_folder(tmp_path)
    write_classes(tmp_path / "test", {"b": 3, "c": 3})
    with pytest.raises(InputError, match=r"test/c: no class of this name"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels is 2"),
        ({"size": 0}, "size is 0"),
        ({"size": (4, 1.5)}, "size is 1.5"),
        ({"size": (4, 4, 3)}, "size is"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    with pytest.raises(InputError, match=message):
        load_folder(tmp_path, **options)
