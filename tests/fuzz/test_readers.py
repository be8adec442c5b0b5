"""Every reader, on a few damaged files in the tests and on many in `make fuzz`; and the harness itself."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from squint._checks import InputError
from squint.data.download import extract
from squint.export.onnx import read_images
from squint.study.recipes import read_recipe
from tests.fuzz.__main__ import fuzz
from tests.fuzz.data_readers import Reader
from tests.fuzz.hostile import archives, png_files, yaml_files
from tests.fuzz.mutations import BYTES, INSIDE
from tests.fuzz.worker import Guard, random_cases, read_all


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    code, said = fuzz(["random"], 600, 0, tmp_path)
    assert code == 0, said
    assert "random: 600 files" in said


@pytest.mark.parametrize("text", list(yaml_files()), ids=lambda text: text[:24])
def test_hostile_recipes_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        read_recipe(path)
    assert len(str(refusal.value)) < 4000
    assert "\n" not in str(refusal.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_hostile_archives_write_nothing_outside(tmp_path: Path) -> None:
    for number, content in enumerate(archives()):
        archive, place = tmp_path / f"{number}.tar.gz", tmp_path / "a" / "b" / str(number)
        archive.write_bytes(content)
        with pytest.raises(InputError):
            extract(archive, {"cifar-10-batches-bin/test_batch.bin": 10_000}, place)
        assert list(place.iterdir()) == []
    assert sorted(entry.name for entry in (tmp_path / "a").iterdir()) == ["b"]


def test_images_that_unfold_are_refused(tmp_path: Path) -> None:
    for number, content in enumerate(png_files()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        with pytest.raises(InputError, match=str(path)):
            read_images([path], 3)


def test_the_harness_finds_what_it_looks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Readers that raise, start something, write elsewhere or hold everything are complained of."""
    place = tmp_path / "files"
    place.mkdir()
    path = place / "a.json"
    path.write_text('{"a": 1}')
    guard = Guard(place)

    def refuse() -> None:
        raise InputError("no")

    def crash() -> None:
        raise KeyError("a")

    def start() -> None:
        subprocess.run(["true"], check=True)

    def write() -> None:
        (tmp_path / "elsewhere").write_text("x")

    def talk() -> None:
        raise InputError("two\nlines")

    said = ("", "KeyError", "subprocess.Popen", "writes", "a message of 9")
    for read, words in zip((refuse, crash, start, write, talk), said, strict=True):
        reader = Reader("one", place, (path,), read)
        failures = tmp_path / words.replace(" ", "")
        failures.mkdir(exist_ok=True)
        read_all(iter([(reader, path, "kind", b"x")]), guard, failures)
        printed = capsys.readouterr().out
        assert (words in printed) if words else not printed
        assert path.read_text() == '{"a": 1}'


def test_damage_is_seeded_and_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, {"b": "c"}], "d": null}')
    reader = Reader("one", tmp_path, (path,), path.read_text)
    first, again = (list(random_cases([reader], 200, random.Random(3))) for _ in range(2))
    assert [case[3] for case in first] == [case[3] for case in again]
    kinds = {damage.__name__ for damage in (*BYTES, INSIDE[".json"])} | {"swapped"}
    assert {kind for _, _, kind, _ in first} == kinds
    assert sum(content != path.read_bytes() for *_, content in first) > 150


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    count = int(os.environ.get("FUZZ_COUNT", "20000"))
    code, said = fuzz(("hostile", "lengths", "random"), count, 0, tmp_path)
    assert code == 0, said
