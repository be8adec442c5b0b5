from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

import squint.data
from squint._checks import InputError
from squint.data import IMAGE_SHAPES, NAMES, catalog, cifar, fashion_mnist, load


@pytest.mark.parametrize("name", ["cifar", "cifar-10", "Digits", ""])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="allowed: digits, fashion-mnist, cifar10, cifar100, folder:PATH"):
        load(name)


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'"):
        load("fashion_mnist")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_missing_sets_are_not_downloaded_when_that_is_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "default_folder", lambda: tmp_path)
    for data_dir in (None, tmp_path):
        with pytest.raises(InputError, match=r"looked for .*--data-dir"):
            load(name, data_dir, download=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_the_package_can_read_a_pickle() -> None:
    folder = Path(squint.data.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            assert not {"pickle", "marshal", "shelve", "joblib"} & set(names), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("np", "load")}, path


def test_shapes_are_those_of_the_sets() -> None:
    assert set(IMAGE_SHAPES) == set(NAMES)
    assert IMAGE_SHAPES["digits"] == load("digits").test.shape
    assert IMAGE_SHAPES["fashion-mnist"] == (1, fashion_mnist.SIDE, fashion_mnist.SIDE)
    for name in ("cifar10", "cifar100"):
        assert math.prod(IMAGE_SHAPES[name]) == cifar._PIXEL_BYTES
