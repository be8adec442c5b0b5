"""A recipe about the hypothesis that takes seconds: two collections of two members on digits."""

from __future__ import annotations

from typing import Any

from squint.study.config import RecipeConfig
from squint.study.recipes import checked
from tests.study.tiny import merged

COARSE = {"weight_bits": 2, "activation_bits": 4, "first_last_bits": 8, "input_bits": 1}
FINE = {"weight_bits": 4, "activation_bits": 4, "first_last_bits": 8, "input_bits": 1}


def collection(title: str, *members: dict[str, Any]) -> dict[str, Any]:
    """Return a collection as plain data."""
    return {
        "title": title, "draws": 2, "training_draws": 2, "objective": {"agreement": 1.0},
        "members": list(members),
    }  # fmt: skip


PLAIN: dict[str, Any] = {
    "name": "tiny-hypothesis",
    "dataset": "digits",
    "width": 2,
    "kind": "hypothesis",
    "eps": "24/255",
    "curve": [],
    "headline": "bits",
    "train": {"epochs": 1, "batch_size": 256, "calibration_images": 64, "accelerator": "cpu"},
    "attack": {"images": 12, "resubmissions": 2},
    "systems": {
        "alike": collection("Two alike", COARSE, COARSE),
        "bits": collection("Two bit widths", COARSE, FINE),
    },
}


def hypothesis(**changes: Any) -> RecipeConfig:
    """Return the tiny recipe with some fields changed."""
    return checked(merged(PLAIN, changes), "tiny: ")
