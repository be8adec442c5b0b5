from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from squint._checks import InputError
from squint.data.cifar import cifar10
from squint.data.tiles import TEST_SHEET, TRAIN_SHEETS, find_tiles, read_tiles

ROWS, COLUMNS = 2, 3
SHEETS = (*TRAIN_SHEETS, TEST_SHEET)


def write_tiles(folder: Path) -> tuple[Tensor, Tensor]:
    """Write sheets of 2x3 tiles and return all images and labels, the test sheet last."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (6 * len(SHEETS), 3, 32, 32), generator=generator, dtype=torch.uint8)
    y = torch.arange(len(x)) % 4
    labels: dict[str, Any] = {"classes": ["a", "b", "c", "d"]}
    for k, sheet in enumerate(SHEETS):
        canvas = Image.new("RGB", (32 * COLUMNS, 32 * ROWS))
        for i in range(6):
            tile = Image.fromarray(np.asarray(x[6 * k + i].permute(1, 2, 0).contiguous()))
            canvas.paste(tile, (32 * (i % COLUMNS), 32 * (i // COLUMNS)))
        canvas.save(folder / f"{sheet}.webp", lossless=True)
        labels[sheet] = y[6 * k : 6 * k + 6].tolist()
    (folder / "labels.json").write_text(json.dumps(labels))
    return x, y


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "labels.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("inside", ["", "cifar10"])
def test_tiles_come_back_byte_for_byte_and_in_order(tmp_path: Path, inside: str) -> None:
    x, y = write_tiles(tmp_path / inside)
    train, test = cifar10(tmp_path, download=False)
    assert torch.equal(train.images, x[:30])
    assert torch.equal(train.labels, y[:30])
    assert torch.equal(test.images, x[30:])
    assert torch.equal(test.labels, y[30:])
    assert train.class_names == ("a", "b", "c", "d")
    assert train.name == "cifar10"


def test_labels_without_sheets_are_no_tiles(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{}")
    assert find_tiles(tmp_path) is None
    with pytest.raises(InputError, match="no cifar10"):
        cifar10(tmp_path, download=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_2": [0, 1, 2]}, r"train_2\.webp has 96x64 pixels; needed: 32x32 for each of 3 labels"),
        ({"train_2": [0, 1, 2, 3, 0, 4]}, "train_2: label 4 of image 5; allowed: 0..3"),
        ({"train_2": [0, 1, 2, 3, 0, 10**30]}, "train_2: label"),
        ({"train_2": [0, 1, 2, 3, 0, -(10**30)]}, "train_2: label"),
        ({"train_2": [0, 1, 2, 3, 0, 1.5]}, "whole numbers"),
        ({"train_2": [0, 1, 2, 3, 0, True]}, "whole numbers"),
        ({"train_2": None}, "train_2 must be a list"),
        ({"classes": []}, "list of class names"),
        ({"classes": [1, 2, 3, 4]}, "list of class names"),
    ],
)
def test_labels_must_fit_the_sheets(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_tiles(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        read_tiles(tmp_path, "cifar10")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "[" * 100_000])
def test_labels_must_be_a_json_object(tmp_path: Path, text: str) -> None:
    write_tiles(tmp_path)
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=r"labels\.json"):
        read_tiles(tmp_path, "cifar10")


def test_missing_and_broken_sheets_are_named(tmp_path: Path) -> None:
    write_tiles(tmp_path)
    sheet = tmp_path / "train_4.webp"
    content = sheet.read_bytes()
    sheet.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"train_4\.webp"):
        read_tiles(tmp_path, "cifar10")
    sheet.write_bytes(b"")
    with pytest.raises(InputError, match=r"train_4\.webp cannot be read as an image"):
        read_tiles(tmp_path, "cifar10")
    sheet.unlink()
    with pytest.raises(InputError, match=r"no train_4\.webp"):
        read_tiles(tmp_path, "cifar10")


def test_a_sheet_of_other_proportions_is_refused(tmp_path: Path) -> None:
    write_tiles(tmp_path)
    Image.new("RGB", (100, 64)).save(tmp_path / "test.webp", lossless=True)
    with pytest.raises(InputError, match="100x64"):
        read_tiles(tmp_path, "cifar10")


def test_pillows_limit_on_pixels_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiles(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_tiles(tmp_path, "cifar10")
