"""What whole files are made of: a small ensemble, its images, and a run's results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import squint
from squint.ensemble import Ensemble
from squint.models import small_cnn

SYSTEM = "noisy"


def images(count: int, channels: int = 1, side: int = 8) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def ensemble() -> Ensemble:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [squint.quantize(small_cnn(4, 1, 2), 3, 2, bits) for bits in (1, 2)]
    ens = Ensemble(nets, draws=2)
    squint.calibrate(ens, images(8))
    return ens.eval()


def record(**changes: Any) -> dict[str, Any]:
    return {
        "system": SYSTEM, "attack": "pgd", "preset": "seed", "norm": "linf", "eps": "24/255", "steps": 20,
        "eot": 1, "restarts": 1, "n": 20, "draws": 2, "seed": 0, "clean_accuracy": 0.9,
        "clean_ci95": [0.8, 1.0],
        "robust_accuracy": 0.5, "ci95": [0.3, 0.7], "single_draw_accuracy": 0.4, "persistent_accuracy": None,
        "persistent": {"1": 0.5, "10": None}, "clean_persistent": {"1": 0.9}, "tier": "A", "seconds": 1.0,
        "red_flags": [{"kind": "k", "message": "m", "measured": {"a": 1.5}}], "trusted": False, "details": {},
    } | changes  # fmt: skip


def results() -> dict[str, Any]:
    point = {
        "system": SYSTEM, "threat": "pgd", "eps": "24/255", "information": 0.1, "baseline": 0.01,
        "information_ci95": [0.0, 0.2], "accuracy": 0.5, "accuracy_ci95": [0.3, 0.7], "n": 20,
    }  # fmt: skip
    system = {
        "name": SYSTEM, "title": "Noisy", "description": "d", "tier": "A", "members": 2, "parameters": 10,
        "weight_bits": "2/3", "training_seconds": 1.0,
    }  # fmt: skip
    return {
        "format_version": 1, "versions": {"torch": "2"}, "hardware": {"device": "cpu"}, "config_hash": "0",
        "recipe": "tiny", "description": "", "dataset": "digits", "class_names": list("abcd"), "seed": 0,
        "headline_system": SYSTEM, "headline_eps": "24/255", "headline_attack": "pgd", "seconds": 1.0,
        "systems": [system], "records": [record(), record(eps="8/255")],
        "plane": [point, point | {"eps": "0"}],
    }  # fmt: skip


def judgement() -> dict[str, Any]:
    comparison = {
        "collection": SYSTEM, "title": "Noisy", "against": "plain", "against_title": "Plain",
        "role": "best member", "with": "its best member alone", "attack": "pgd", "eps": "24/255",
        "verdict": "helps", "mean": 0.061, "ci95": [0.03, 0.092], "images": 20, "seeds": 1,
    }  # fmt: skip
    return {
        "attack": "pgd", "eps": "24/255", "margin": 0.02, "comparisons": [comparison],
        "conclusions": [{"collection": SYSTEM, "words": "The collection beats its best member."}],
    }  # fmt: skip
