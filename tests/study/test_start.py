"""Systems whose training goes on from the weights of a file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import squint
from squint import data as D
from squint._checks import InputError
from squint.study import run_study
from squint.study.card import card
from squint.study.config import RecipeConfig
from squint.study.costs import costs_of
from squint.study.systems import build_system
from squint.training import TrainingStopped
from tests.study.test_run import StoppingBar
from tests.study.tiny import tiny


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a training that is over."""
    path = tmp_path_factory.mktemp("first") / "run"
    run_study(tiny(), path, only=["noisy"], attack=False)
    return path / "weights" / "noisy.safetensors"


def going_on(start: object, **changes: Any) -> RecipeConfig:
    return tiny(systems={"noisy": {"start": str(start), **changes}}, train={"epochs": 1})


def test_the_system_begins_with_the_files_weights_and_ranges(first: Path) -> None:
    train = D.load("digits").train
    begun = build_system(going_on(first), "noisy", train).state_dict()
    stored = squint.load(first).state_dict()
    assert begun.keys() == stored.keys()
    assert all(torch.equal(begun[name], stored[name]) for name in stored)
    fresh = build_system(tiny(), "noisy", train).state_dict()
    assert not all(torch.equal(begun[name], fresh[name]) for name in stored)
    # The other system knows nothing of it.
    plain = build_system(going_on(first), "plain", train).state_dict()
    assert all(torch.equal(v, plain[k]) for k, v in build_system(tiny(), "plain", train).state_dict().items())


def test_no_epochs_leave_the_files_weights(first: Path, tmp_path: Path) -> None:
    run_study(going_on(first, epochs=0), tmp_path / "run", only=["noisy"], attack=False)
    kept = squint.load(tmp_path / "run" / "weights" / "noisy.safetensors").state_dict()
    stored = squint.load(first).state_dict()
    assert all(torch.equal(kept[name], stored[name]) for name in stored)


def test_training_goes_on_and_what_is_left_says_from_where(first: Path, tmp_path: Path) -> None:
    """One epoch more from trained weights begins below where the first epoch of all began."""
    recipe = going_on(first)
    results = run_study(recipe, tmp_path / "run", only=["noisy"])
    losses = [
        json.loads((folder / "log.jsonl").read_text().splitlines()[0])["terms"]["member_ce"]
        for folder in (first.parents[1], tmp_path / "run")
    ]
    assert losses[1] < losses[0]
    (facts,) = results["systems"]
    assert (facts["start"], facts["training_compute"]) == (str(first), None)
    text = card(results, recipe, "noisy", tmp_path / "run" / "weights" / "noisy.safetensors")
    assert f"1 epochs in {facts['training_seconds']:.0f} s, going on from the weights of `{first}`\n" in text
    assert "seed 0\n" in text
    later = replace(recipe, seed=1, train=replace(recipe.train, seed=2))
    assert "(of order, augmentation and noise: 3)\n" in card(results, later, "noisy", first)


def test_a_stopped_one_ends_the_same(first: Path, tmp_path: Path) -> None:
    run_study(going_on(first), tmp_path / "whole", only=["noisy"], attack=False)
    stopped = StoppingBar("train noisy", 2, by_signal=True)
    with pytest.raises(TrainingStopped):
        run_study(going_on(first), tmp_path / "parts", only=["noisy"], attack=False, bar=stopped)
    run_study(going_on(first), tmp_path / "parts", only=["noisy"], attack=False, resume=True)
    whole, parts = (
        (tmp_path / name / "weights/noisy.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts


def test_a_finished_training_needs_its_start_no_more(first: Path, tmp_path: Path) -> None:
    copy = tmp_path / "first.safetensors"
    shutil.copy(first, copy)
    run_study(going_on(copy), tmp_path / "run", only=["noisy"], attack=False)
    copy.unlink()
    run_study(going_on(copy), tmp_path / "run", only=["noisy"], attack=False, resume=True)
    with pytest.raises(InputError, match=r"^systems\.noisy\.start is "):
        run_study(going_on(copy), tmp_path / "run", only=["noisy"], attack=False, overwrite=True)


def test_bad_starts_are_refused_before_anything_is_written(first: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(first.read_bytes()[:100])
    refused = {
        str(tmp_path / "none.safetensors"): "none.safetensors",
        str(damaged): "damaged.safetensors",
    }
    for start, named in refused.items():
        with pytest.raises(InputError, match=rf"^systems\.noisy\.start is '[^']*{named}': .*") as caught:
            run_study(going_on(start), tmp_path / "run")
        assert "\n" not in str(caught.value)
    members = [{"weight_bits": 4, "activation_bits": 4, "first_last_bits": 8, "input_bits": 1}] * 2
    with pytest.raises(
        InputError, match=r"of other networks or quantizers; allowed: weights of the system's own"
    ):
        run_study(going_on(first, members=members), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"equal_compute": True}, {"kind": "hypothesis"}])
def test_where_all_training_is_counted_no_start_is_allowed(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"systems\.noisy\.start is 'x'; allowed: none with equal_compute"):
        tiny(systems={"noisy": {"start": "x"}}, **changes)


def test_no_ratio_of_compute_where_the_headline_went_on(first: Path) -> None:
    train = D.load("digits").train
    recipe = going_on(first)
    assert costs_of(recipe, "plain", build_system(recipe, "plain", train), train)["training_compute"] is None
