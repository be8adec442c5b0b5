"""What each process of the evaluation tests' job does: `python -m tests.evaluation.sharded_job FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from squint import _ranks, noise
from squint.attacks import pgd
from squint.attacks.gradients import AnyModel
from squint.evaluation import evaluate
from squint.evaluation.active import active_tests
from squint.evaluation.budgets import tiny
from squint.evaluation.detection import detect
from squint.evaluation.information_plane import information_plane
from squint.evaluation.ladder_run import run_ladder
from squint.training import TrainConfig
from squint.training.launching import make_fabric
from tests.evaluation.ladder_models import small_ensemble

EPS = "13/255"
BATCH = 3
IMAGES = 8
"""Three batches for two processes: one has two of them, the last batch is short."""


def untimed(found: Any) -> Any:
    """Plain data without its wall times."""
    if isinstance(found, dict):
        return {key: untimed(value) for key, value in found.items() if "seconds" not in key}
    return [untimed(value) for value in found] if isinstance(found, list | tuple) else found


def ascent(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """A short attack for the active tests."""
    return pgd(model, x, y, eps=eps, steps=2, generator=generator)


def evaluated(folder: Path) -> dict[str, Any]:
    """Return records and points of every kind of evaluation."""
    generator = torch.Generator().manual_seed(3)
    # Calibration draws noise too, and tests that ran before have moved squint's own stream.
    with noise(generator):
        ens = small_ensemble(2)
    x, y = torch.rand(40, 1, 4, 4, generator=generator), torch.randint(4, (40,), generator=generator)
    data = x[:IMAGES], y[:IMAGES]
    shared: dict[str, Any] = {"resubmissions": 8, "batch_size": BATCH}
    plain = evaluate(ens, data, [EPS, "26/255"], ["seed", "fgsm"], **shared)
    ladder = run_ladder(ens, data, EPS, tiny(steps=2), counts=(1, 2), folder=folder / "ladder", **shared)
    again = run_ladder(ens, data, EPS, tiny(steps=2), counts=(1, 2), folder=folder / "ladder", **shared)
    active = active_tests(
        ens, data, EPS, seed=0, attack=ascent, doubled=ascent, planted=4, planted_batch=2, **shared
    )
    noticed = detect(
        ens,
        data,
        (x, y),
        EPS,
        attacks=["pgd"],
        adaptive=["selective"],
        steps=4,
        eot=2,
        check_every=2,
        **shared,
    )
    plane = information_plane(ens, data, threats=["linf-pgd"], eps=(EPS,), bootstrap=2, **shared)
    return {
        "records": untimed([record.to_json() for record in plain.records]),
        "points": [outcome.adversarial for outcome in plain.outcomes],
        "ladder": untimed(ladder.summary()),
        "ladder again": untimed(again.summary()),
        "ladder points": ladder.climb.points,
        "active": untimed(vars(active) | {"findings": len(active.findings)}),
        "detection": untimed(noticed.to_json()),
        "plane": untimed([row.to_json() for row in plane.rows]),
    }


if __name__ == "__main__":
    make_fabric(TrainConfig(accelerator="cpu", devices=_ranks.started()))
    torch.save(evaluated(Path(sys.argv[1]) / "2"), Path(sys.argv[1]) / f"{_ranks.rank()}.pt")
