"""Evaluation shared by two processes (gloo): the records of one process, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from squint import _ranks
from squint._checks import InputError
from squint.evaluation.sharding import merged, sharded
from tests.evaluation.sharded_job import evaluated
from tests.processes import finish, start

JOB = "tests.evaluation.sharded_job"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """What one process found, and what each of two did."""
    folder = tmp_path_factory.mktemp("jobs")
    processes = start(2, ["-m", JOB, str(folder)])
    one = evaluated(folder / "1")
    for code, written in finish(processes, 600):
        assert code == 0, written
    return folder, one, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize(
    "what", ["records", "points", "ladder", "ladder points", "active", "detection", "plane"]
)
def test_two_processes_find_what_one_finds(
    jobs: tuple[Path, dict[str, Any], list[dict[str, Any]]], what: str
) -> None:
    _, one, two = jobs
    assert one[what]
    for found in two:
        assert same(found[what], one[what])


def test_each_batch_of_the_ladder_was_climbed_once_and_is_taken_up_again(
    jobs: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    folder, one, two = jobs
    places = ("00000", "00001", "00002-of-2")
    names = [f"batch-{place}.{ending}" for place in places for ending in ("json", "npz")]
    for count in ("1", "2"):
        held = sorted(path.name for path in (folder / count / "ladder").iterdir())
        assert held == [*names, "configuration.json"]
    for found in (one, *two):
        assert found["ladder again"] == found["ladder"]


def test_alone_a_process_computes_every_chunk_in_order() -> None:
    seen: list[int] = []
    assert _ranks.count() == 1
    assert sharded(3, lambda chunk: seen.append(chunk) or chunk * chunk, "squares") == [0, 1, 4]  # type: ignore[func-returns-value]
    assert seen == [0, 1, 2]


@given(count=st.integers(0, 20), owners=st.data())
def test_merging_does_not_depend_on_who_computed_what(count: int, owners: st.DataObject) -> None:
    shards: list[tuple[int, dict[int, str]]] = [(count, {}) for _ in range(3)]
    for chunk in owners.draw(st.permutations(range(count))):
        shards[owners.draw(st.integers(0, 2))][1][chunk] = f"outcome {chunk}"
    assert merged(shards, "work") == [f"outcome {chunk}" for chunk in range(count)]


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([(3, {0: "a", 2: "c"}), (3, {})], r"1 of 3 chunks are missing \(the first is 1\), which process 1"),
        ([(3, {0: "a", 2: "c"}), (2, {1: "b"})], r"the processes have \[3, 2\] chunks"),
        ([(1, {0: "a"}), (1, {0: "a"})], "chunk 0 came twice, last from process 1"),
    ],
)
def test_shards_that_do_not_fit_are_refused(shards: list[tuple[int, dict[int, str]]], message: str) -> None:
    with pytest.raises(InputError, match=f"^ladder on model: {message}.*; start all processes with the same"):
        merged(shards, "ladder on model")
