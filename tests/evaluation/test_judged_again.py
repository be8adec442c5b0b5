"""Preflight and active tests that were stopped: what is done is read, the rest is run, no more changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from squint import InputError
from squint.evaluation import evaluate, ladder_report
from squint.evaluation.active import active_tests
from squint.evaluation.batch_outcomes import BatchOutcomes
from squint.evaluation.budgets import PRESETS, tiny
from squint.evaluation.kept_parts import KeptParts
from squint.evaluation.preflight import preflight
from tests.evaluation.graveyard import nets
from tests.evaluation.test_red_flags import ONE_LOOK


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `standard` of two short rungs and few probes that runs every test all the same."""
    monkeypatch.setitem(PRESETS, "standard", replace(tiny(1, 1), name="standard"))
    probes = replace(ONE_LOOK, images=6, batch_size=4)
    monkeypatch.setattr(ladder_report, "preflight", partial(preflight, probes=probes))
    monkeypatch.setattr(ladder_report, "active_tests", partial(active_tests, planted=2))
    monkeypatch.setattr(ladder_report, "JUDGED_AT_ONCE", 4)


class StoppedError(Exception):
    pass


@contextmanager
def watched(stop_after: int | None = None) -> Iterator[list[str]]:
    """Yield the names of the parts that are written; no more than `stop_after` of them."""
    names: list[str] = []
    save = BatchOutcomes.save

    def noted(
        self: BatchOutcomes, batch: int | str, arrays: Mapping[str, Any], plain: Mapping[str, Any]
    ) -> None:
        if isinstance(batch, str) and not batch.startswith("batch"):
            if len(names) == stop_after:
                raise StoppedError
            names.append(batch)
        save(self, batch, arrays, plain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchOutcomes, "save", noted)
        yield names


def judged(folder: Path | None, **changed: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"sources": {"plain": nets.undefended()}, "seed": 0, **changed}
    report = evaluate(nets.stochastic(), nets.images(6), 0.1, "standard", folder=folder, **arguments)
    plain = report.records[0].to_json()
    assert plain["details"]["active_tests"]["convergence_gain"] is not None
    return {"flags": plain["red_flags"], "tests": plain["details"]["active_tests"]}


def test_the_verdict_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    with watched() as names:
        whole = judged(tmp_path / "whole")
    assert {name.split("-")[0] for name in names} == {"preflight", "planted", "gate", "control"}
    assert len(set(names)) == len(names)
    assert any("fidelity" in name for name in names)
    for stop in (3, len(names) - 1):
        folder = tmp_path / f"stopped-{stop}"
        with watched(stop) as first, pytest.raises(StoppedError):
            judged(folder)
        with watched() as second:
            assert judged(folder) == whole
        assert [*first, *second] == names, "each part once, in the same order"
    with watched() as again:
        assert judged(tmp_path / "whole") == whole
    assert again == []


def test_smaller_batches_are_smaller_parts_of_the_gate_too(tmp_path: Path) -> None:
    with watched() as names:
        judged(tmp_path, batch_size=3)
    # Of what, how many at once, the first of them, a digest.
    parts = [name.rsplit("-", 3)[:3] for name in names if name.startswith(("gate", "control"))]
    assert {what.split("-")[0] for what, _, _ in parts} == {"gate", "control"}
    assert {(many, first) for _, many, first in parts} == {("3", "0"), ("3", "3")}


@pytest.mark.parametrize(("change", "named"), [({"ceilings": {0.2: 0.5}}, "ceilings"), ({"seed": 1}, "seed")])
def test_another_configuration_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with watched(3), pytest.raises(StoppedError):
        judged(tmp_path)
    with pytest.raises(InputError, match=f"another configuration, which differs in {named}"):
        judged(tmp_path, **change)
    with watched() as rest:
        judged(tmp_path)
    assert rest, "nothing of what was kept is lost"


def test_parts_are_read_back_and_told_apart(tmp_path: Path) -> None:
    kept = KeptParts(tmp_path, lambda: {"seed": 0})
    values = torch.tensor([0.1, torch.inf], dtype=torch.float64)
    asked: list[str] = []

    def compute(what: str, made: Tensor) -> Tensor:
        asked.append(what)
        return made

    for _ in range(2):
        assert torch.equal(kept.part(lambda: compute("a", values), "a", 0.5, 1), values)
        assert len(kept.part(lambda: compute("b", torch.tensor([])), "a", "0.5-1")) == 0
    assert asked == ["a", "b"]
    kept.part(lambda: values, "c")
    next(tmp_path.glob("c-*.npz")).write_bytes(b"x")
    said = r"no whole npz file.*; remove .* to have c-.* attacked again"
    with pytest.raises(InputError, match=said):
        kept.part(lambda: values, "c")
    assert torch.equal(KeptParts().part(lambda: values, "a"), values)
