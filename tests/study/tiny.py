"""A study that takes seconds: two systems on digits, two short epochs, 20 attacked images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squint.study.config import RecipeConfig
from squint.study.recipes import checked

PLAIN: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "width": 4,
    "eps": "24/255",
    "curve": ["8/255"],
    "train": {"epochs": 2, "batch_size": 256, "calibration_images": 64, "average": 0.5},
    "attack": {"images": 20, "resubmissions": 4},
    "systems": {
        "plain": {"draws": 1, "members": [{}]},
        "noisy": {
            "title": "Two noisy members",
            "draws": 2,
            "training_draws": 2,
            "objective": {"agreement": 1.0, "conditional_redundancy": 0.1},
            "members": [
                {"weight_bits": 2, "activation_bits": 4, "first_last_bits": 8, "input_bits": 1},
                {"weight_bits": 3, "activation_bits": 4, "first_last_bits": 8, "input_bits": 2},
            ],
        },
    },
}


def tiny(**changes: Any) -> RecipeConfig:
    """Return the tiny recipe with some fields changed."""
    return checked(merged(PLAIN, changes), "tiny: ")


def merged(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested plain data with changes put in at their places."""
    out = dict(plain)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if inside else value
    return out
