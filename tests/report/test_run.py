"""Run folders: what is read, and how a corrupt file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squint._checks import InputError
from squint.report.run import read_run

Build = Callable[..., Path]


def rewrite(path: Path, **changes: Any) -> None:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_everything_is_read(build: Build, tmp_path: Path) -> None:
    run = read_run(build(tmp_path))
    assert len(run.results.records) == 15
    assert run.config.startswith("recipe: cifar10-small")
    assert len(run.epochs["squint_b"]) == 30
    assert run.epochs["squint_b"][9].terms["conditional_redundancy"] > 0
    assert run.epochs["squint_b"][8].validation_accuracy is None
    assert sorted(run.examples) == ["lsq", "squint_a"]
    assert run.examples["squint_a"].adversarial_votes.shape == (8, 3)


def test_a_resumed_run_keeps_the_later_epoch(build: Build, tmp_path: Path) -> None:
    folder = build(tmp_path, only_results=True)
    lines = [
        {"event": "epoch", "system": "lsq", "epoch": e, "terms": {"total": v}}
        for e, v in ((1, 3), (2, 2), (1, 5))
    ]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    history = read_run(folder).epochs["lsq"]
    assert [(e.epoch, e.terms["total"]) for e in history] == [(1, 5.0), (2, 2.0)]


def test_a_line_that_is_still_being_written_is_left_out(build: Build, tmp_path: Path) -> None:
    folder = build(tmp_path)
    log = folder / "log.jsonl"
    log.write_text(log.read_text() + '{"event": "epo')
    assert len(read_run(folder).epochs["lsq"]) == 30


def test_a_torn_line_inside_the_log_is_named(build: Build, tmp_path: Path) -> None:
    folder = build(tmp_path)
    log = folder / "log.jsonl"
    log.write_text('{"event": "sta\n' + log.read_text())
    with pytest.raises(InputError, match=r"log\.jsonl, line 1 is not valid JSON"):
        read_run(folder)


def test_a_term_that_is_no_number_is_named(build: Build, tmp_path: Path) -> None:
    folder = build(tmp_path, only_results=True)
    (folder / "log.jsonl").write_text('{"event":"epoch","system":"a","epoch":1,"terms":{"total":"high"}}\n')
    with pytest.raises(InputError, match=r"line 1: terms: total is 'high'"):
        read_run(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00"])
def test_corrupt_results_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        read_run(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no results\.json"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 torn"])
def test_corrupt_examples_are_named(build: Build, tmp_path: Path, content: bytes) -> None:
    folder = build(tmp_path)
    (folder / "examples" / "squint_a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"squint_a\.npz is no whole npz file"):
        read_run(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean": None}, "is incomplete: clean"),
        ({"label": np.zeros((3,), int)}, r"label has shape \(3,\)"),
        ({"clean": np.zeros((8, 3, 32, 32))}, "clean has dtype float64; allowed: uint8"),
        ({"adversarial": np.zeros((8, 1, 32, 32), np.uint8)}, "allowed: that of clean"),
        ({"adversarial_votes": np.zeros((8, 2), int)}, "allowed: that of clean_votes"),
        ({"error_share": np.array([{}] * 8)}, "holds Python objects"),
    ],
)
def test_examples_that_do_not_fit_are_named(
    build: Build, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = build(tmp_path)
    rewrite(folder / "examples" / "squint_a.npz", **changes)
    with pytest.raises(InputError, match=said):
        read_run(folder)
