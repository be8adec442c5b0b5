"""Settings that trainings are tried with."""

from __future__ import annotations

from typing import Any

import torch

from squint.ensemble import Ensemble
from squint.training import ObjectiveConfig, TrainConfig

EPOCHS, BATCH = 2, 24
STEPS = 48 // BATCH


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(
        **{"epochs": EPOCHS, "batch_size": BATCH, "draws": 2, "accelerator": "cpu", **settings}
    )


def same(a: Ensemble, b: Ensemble) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


FULL: dict[str, Any] = {
    "average": 0.9,
    "crop": 1,
    "flip": True,
    "objective": ObjectiveConfig(
        ensemble=0.5, redundancy=0.1, conditional_redundancy=0.1, agreement=0.5, smoothness=0.1
    ),
}
