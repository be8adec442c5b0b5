"""An evaluation that was stopped goes on with the batch that it was at, and ends in the same bits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from squint import noise
from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.evaluation import AttackSetting, evaluate
from squint.evaluation.arrays import read_npz, write_npz
from squint.evaluation.batch_outcomes import digest_of
from squint.evaluation.information_plane import information_plane
from tests.evaluation.ladder_models import small_ensemble
from tests.evaluation.sharded_job import untimed

ATTACKS: list[str | AttackSetting] = [AttackSetting("pgd-three", steps=3), "fgsm"]
RADII = ["13/255", "26/255"]
THREATS = ("linf-pgd", "noise-linf")


class Stopped(Exception):  # noqa: N818
    """Stands for a kill."""


def model() -> Ensemble:
    with noise(torch.Generator().manual_seed(5)):
        return small_ensemble(2)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(8, 1, 4, 4, generator=generator), torch.randint(4, (8,), generator=generator)


def attacked(ens: Ensemble, **more: Any) -> dict[str, Any]:
    """Everything that an evaluation gives."""
    report = evaluate(ens, data(), RADII, ATTACKS, resubmissions=8, batch_size=3, **more)
    return {
        "records": untimed([record.to_json() for record in report.records]),
        "points": [outcome.adversarial for outcome in report.outcomes],
        "correct": [outcome.correct for outcome in report.outcomes],
        "clean": report.clean_correct,
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    tensors = all(
        torch.equal(left, right) and left.dtype == right.dtype
        for key in ("points", "correct")
        for left, right in zip(a[key], b[key], strict=True)
    )
    return tensors and torch.equal(a["clean"], b["clean"]) and bool(a["records"] == b["records"])


@pytest.mark.parametrize("calls", [1, 4, 11])
def test_a_stopped_evaluation_goes_on_with_the_batch_that_it_was_at(calls: int, tmp_path: Path) -> None:
    ens, wanted = model(), attacked(model())
    done: list[int] = []

    def stop(images: int, _: int) -> None:
        done.append(images)
        if len(done) == calls:
            raise Stopped

    with pytest.raises(Stopped):
        attacked(ens, folder=tmp_path, progress=stop)
    # Three batches of clean images, and those of the attacks that were done.
    files = {path: path.read_bytes() for path in tmp_path.glob("batch-*.json")}
    assert len(files) == 3 + calls
    assert same(attacked(ens, folder=tmp_path), wanted)
    assert len(list(tmp_path.glob("batch-*.json"))) == 3 + 4 * 3
    for path, content in files.items():
        assert path.read_bytes() == content
    # All is read now, and nothing is attacked.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttackSetting, "run", lambda *_, **__: pytest.fail("was attacked again"))
        assert same(attacked(ens, folder=tmp_path), wanted)


def test_seconds_are_those_of_the_runs_that_computed(tmp_path: Path) -> None:
    def seconds() -> list[float | None]:
        report = evaluate(model(), data(), RADII, ATTACKS, resubmissions=8, batch_size=3, folder=tmp_path)
        return [record.seconds for record in report.records]

    first = seconds()
    assert all(taken for taken in first)
    assert seconds() == first
    # Batches 3 to 5 are those of the first attack, after three of clean images.
    for batch in range(3, 6):
        path = tmp_path / f"batch-{batch:05d}.json"
        note = json.loads(path.read_text())
        note["outcome"]["seconds"] = 1000.0 + batch
        path.write_text(json.dumps(note))
    assert seconds() == [3012.0, *first[1:]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"draws": 3}, "draws"),
        ({"system": "other"}, "system"),
        ({"model": None}, "model"),
        ({"limit": 7}, "data"),
    ],
)
def test_another_evaluation_is_refused_by_what_differs(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    attacked(model(), folder=tmp_path)
    other = small_ensemble(2, seed=4) if "model" in change else model()
    change.pop("model", None)
    said = rf"^{re.escape(str(tmp_path))} holds outcomes of another configuration, which differs in {named};"
    with pytest.raises(InputError, match=said):
        attacked(other, folder=tmp_path, **change)


def test_an_outcome_of_something_else_names_the_folder(tmp_path: Path) -> None:
    attacked(model(), folder=tmp_path)
    path = tmp_path / "batch-00002.json"
    path.write_text(path.read_text().replace('"random": true', '"random": 7'))
    with pytest.raises(
        InputError, match=r"^batch 2 in .* holds no outcome of an attack: remove that folder$"
    ):
        attacked(model(), folder=tmp_path)
    path.write_text(path.read_text().replace('"random": 7', '"random": true'))
    # Whoever changes the arrays on purpose writes the hash that belongs to them.
    arrays = dict(read_npz(path.with_suffix(".npz")))
    arrays["errors"] = arrays["errors"][:1]
    write_npz(path.with_suffix(".npz"), arrays)
    note = json.loads(path.read_text()) | {"arrays": digest_of(arrays)}
    path.write_text(json.dumps(note))
    with pytest.raises(InputError, match=r"^batch 2 in .* holds no outcome of an attack"):
        attacked(model(), folder=tmp_path)


def test_a_stopped_plane_goes_on_with_the_next_point(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"eps": RADII, "bootstrap": 2, "resubmissions": 4, "draws": 2}
    wanted = information_plane(model(), data(), THREATS, **arguments)
    ens = model()

    def stop(points: int, _: int) -> None:
        if points == 3:
            raise Stopped

    with pytest.raises(Stopped):
        information_plane(ens, data(), THREATS, folder=tmp_path, progress=stop, **arguments)
    assert len(list(tmp_path.glob("batch-*.json"))) == 3
    seen: list[int] = []

    def tell(points: int, _: int) -> None:
        seen.append(points)

    found = information_plane(ens, data(), THREATS, folder=tmp_path, progress=tell, **arguments)
    assert found.to_json() == wanted.to_json()
    assert seen == [1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="which differs in bootstrap; choose another folder, or remove it"):
        information_plane(ens, data(), THREATS, folder=tmp_path, **{**arguments, "bootstrap": 3})
    path = tmp_path / "batch-00001.json"
    path.write_text(path.read_text().replace('"accuracy":', '"accuracy": "x", "was":'))
    with pytest.raises(InputError, match=r"^point 1 in .* holds no rows of a plane: remove that folder$"):
        information_plane(ens, data(), THREATS, folder=tmp_path, **arguments)
