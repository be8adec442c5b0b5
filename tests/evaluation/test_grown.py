"""A folder of few images that is gone on with for more, and who computed what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from squint._checks import InputError
from squint.evaluation import evaluate, provenance
from squint.evaluation.batch_outcomes import BatchOutcomes, digest
from squint.evaluation.budgets import tiny
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.provenance import code_digest, maker, makers, mixed_code
from squint.evaluation.records import Record
from tests.evaluation.graveyard import nets
from tests.evaluation.ladder_models import NoisyPair, pair_data
from tests.evaluation.test_judged_again import short, watched
from tests.evaluation.test_ladder_run import EPS, same

__all__ = ["short"]
DATA = pair_data(NoisyPair(), 9, margin=0.4)


def run(n: int, folder: Path | None, **options: Any) -> Any:
    arguments: dict[str, Any] = {"batch_size": 3, "counts": (1, 4), "resubmissions": 40, "known": False}
    return run_ladder(NoisyPair(), DATA, EPS, tiny(steps=3), folder=folder, limit=n, **arguments, **options)


@pytest.mark.parametrize(("few", "kept"), [(6, 2), (5, 1)])
def test_more_images_go_on_with_the_whole_batches_that_are_done(few: int, kept: int, tmp_path: Path) -> None:
    run(few, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("batch-*.json")}
    attacked: list[int] = []

    def noted(rung: str, alive: int, done: int) -> None:
        del alive
        attacked.extend([] if rung == "done" else [done])

    grown = run(9, tmp_path, progress=noted)
    assert sorted(set(attacked)) == [3 * place for place in range(kept, 3)], "the first image of each batch"
    assert same(grown, run(9, None))
    after = {path.name: path.read_bytes() for path in tmp_path.glob("batch-*.json")}
    assert after.items() >= before.items()
    assert same(run(9, tmp_path), grown)


@pytest.mark.parametrize("few", [6, 5])
def test_fewer_images_than_a_folder_is_of_are_refused(few: int, tmp_path: Path) -> None:
    run(9, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"differs in data, n; .* or go on with the 9 images .*, or more"):
        run(few, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x + 0.01, y),
        lambda x, y: (x, 1 - y),
        lambda x, y: (x.roll(1, 0), y.roll(1, 0)),
    ],
)
def test_more_of_other_images_are_refused(change: Any, tmp_path: Path) -> None:
    x, y = DATA
    opened(tmp_path, x[:6], y[:6])
    with pytest.raises(InputError, match="differs in data, n;"):
        opened(tmp_path, *change(x, y))
    opened(tmp_path, x, y)


def opened(folder: Path, x: torch.Tensor, y: torch.Tensor) -> BatchOutcomes:
    return BatchOutcomes(folder, {"seed": 0, "data": digest(x, y), "n": len(y)}, (x, y))


def recorded(n: int, folder: Path | None) -> Record:
    sources = {"plain": nets.undefended()}
    options: dict[str, Any] = {"folder": folder, "limit": n, "batch_size": 2, "sources": sources}
    return evaluate(nets.stochastic(), nets.images(8), 0.1, "standard", **options).records[0]


def judged(n: int, folder: Path | None) -> dict[str, Any]:
    plain = recorded(n, folder).to_json()
    return {name: plain[name] for name in plain if name not in ("seconds", "details")} | {
        "tests": plain["details"]["active_tests"],
        "preflight": plain["details"]["preflight"],
    }


def test_what_was_judged_of_the_first_images_is_kept(tmp_path: Path) -> None:
    with watched() as first:
        judged(6, tmp_path)
    with watched() as second:
        assert judged(8, tmp_path) == judged(8, None)
    kinds = [name.split("-")[0] for name in first]
    assert kinds.count("planted") >= 1
    assert "planted" not in {name.split("-")[0] for name in second}, "these points are of the first images"
    assert not set(first) & set(second)
    assert [name for name in second if name.startswith("gate")], "the new images' survivors"


def test_parts_of_another_code_are_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(6, tmp_path)
    assert makers(list(tmp_path.rglob("judged"))) == [maker()]
    monkeypatch.setattr(provenance, "code_digest", lambda: "0123456789abcdef")
    record = recorded(8, tmp_path)
    assert [flag.measured for flag in record.red_flags if flag.kind == "mixed_code"] == [
        {"codes": sorted([code_digest(), "0123456789abcdef"])}
    ]
    assert [each["code"] for each in record.details["made_by"]] == sorted([code_digest(), "0123456789abcdef"])


def test_notes_that_name_nobody_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "configuration.json").write_text('{"format": 3}')
    for place, by in enumerate([None, "x", {}, {**maker(), "code": "<b>"}, {**maker(), "more": 1}]):
        (tmp_path / f"part-{place}.json").write_text(json.dumps({"batch": place, "by": by}))
    unknown = {"squint": "unknown", "code": "unknown", "torch": "unknown"}
    assert makers([tmp_path]) == sorted([maker(), unknown], key=lambda each: each["code"])
    assert [finding.kind for finding in mixed_code(makers([tmp_path]))] == ["mixed_code"]
    assert mixed_code(makers([])) == []
    assert maker()["torch"] == str(torch.__version__)
