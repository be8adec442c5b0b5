"""Training compute: counted by hand, and equal where a recipe asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import squint.study.run
from squint import data as D
from squint.quantize import calibrate
from squint.study import run_study
from squint.study.costs import costs_of, epochs_of, passes_per_step
from squint.study.recipes import load_recipe
from squint.study.systems import build_system
from tests.study.tiny import tiny

NOISY = {"objective": {"agreement": 1.0, "smoothness": 0.1}}


def test_passes_of_a_step_are_counted() -> None:
    systems = tiny().systems
    assert passes_per_step(systems["plain"]) == 1
    assert passes_per_step(systems["noisy"]) == 2 * 2  # members, draws
    smooth = tiny(systems={"noisy": NOISY}).systems["noisy"]
    assert passes_per_step(smooth) == 2 * 2 * 3  # the image, and two points for the penalty
    curved = {"objective": {**NOISY["objective"], "smoothness_kind": "curvature"}}
    # Two of the gradients are differentiated, which counts twice.
    assert passes_per_step(tiny(systems={"noisy": curved}).systems["noisy"]) == 2 * 2 * 5
    rivals = load_recipe("study-digits").systems
    assert passes_per_step(rivals["adversarial-training"]) == 7 + 1  # attack steps, and the loss
    assert passes_per_step(rivals["empir"]) == 3


def test_equal_compute_gives_cheap_systems_more_epochs_and_none_fewer() -> None:
    recipe = tiny(equal_compute=True)
    assert {name: epochs_of(recipe, name) for name in recipe.systems} == {"plain": 8, "noisy": 2}
    assert epochs_of(tiny(), "plain") == 2
    dear_rival = tiny(equal_compute=True, headline="plain")
    assert epochs_of(dear_rival, "noisy") == 2
    own = tiny(equal_compute=True, systems={"plain": {"epochs": 5}})
    assert epochs_of(own, "plain") == 5
    # Six passes a step against five: one epoch would be fewer passes than the headline's.
    assert epochs_of(load_recipe("study-cifar10"), "cure") == 2


def test_a_recipe_with_patches_builds_their_stems() -> None:
    recipe = tiny(model="resnet8", patch=2)
    ens = build_system(recipe, "plain", D.load("digits").train)
    (stem,) = (part for name, part in ens.named_modules() if name.endswith("stem.0"))
    assert (stem.kernel_size, stem.stride) == ((4, 4), (2, 2))


def test_costs_of_a_system() -> None:
    """One full-precision network by hand: its weights are read once, at 32 bits on both sides."""
    recipe = tiny(equal_compute=True)
    train = D.load("digits").train
    ens = build_system(recipe, "plain", train)
    found = costs_of(recipe, "plain", ens, train)
    held = sum(p.numel() for p in ens.parameters()) + sum(b.numel() for b in ens.buffers())
    assert found["stored_bits"] == 32 * held
    steps = len(train) // 256
    assert (found["training_epochs"], found["training_passes"]) == (8, 8 * steps)
    assert found["training_compute"] == 1.0
    noisy = build_system(recipe, "noisy", train)
    for member in noisy.members:
        calibrate(member, train.float_images()[:64])
    other = costs_of(recipe, "noisy", noisy, train)
    assert other["training_passes"] == 2 * steps * 4
    assert other["training_compute"] == 1.0
    assert other["draws"] == 2
    assert other["bit_operations"] < found["bit_operations"]


def test_untrained_systems_have_no_ratio() -> None:
    recipe = tiny(train={"epochs": 0})
    train = D.load("digits").train
    assert costs_of(recipe, "plain", build_system(recipe, "plain", train), train)["training_compute"] is None


def test_a_study_trains_for_the_epochs_that_it_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squint.study.run, "write_report", lambda folder: folder)
    recipe = tiny(equal_compute=True, train={"epochs": 1, "evaluate_every": 4}, attack={"images": 4})
    results = run_study(recipe, tmp_path / "run")
    facts: dict[str, dict[str, Any]] = {system["name"]: system for system in results["systems"]}
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    for name in ("plain", "noisy"):
        assert sum(f'"system": "{name}"' in entry for entry in log) == facts[name]["training_epochs"]
    assert facts["plain"]["training_epochs"] == 4
    assert facts["noisy"]["bit_operations"] > 0
