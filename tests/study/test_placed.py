"""All that an evaluation runs lies where its recipe computes: a network left elsewhere fails on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import squint.study.attack
import squint.study.run
from squint.ensemble import Ensemble
from squint.study.attack import AttackOptions, attack_weights
from squint.study.config import RecipeConfig
from squint.study.progress import Silence
from squint.study.run import run_study
from squint.study.systems import placed
from tests.study.finished import finished
from tests.study.tiny import tiny


class SeenError(Exception):
    """Ends what was looked at."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was placed, and what the ladder was then given."""
    found: dict[str, Any] = {"placed": []}

    def place(ens: Ensemble, recipe: RecipeConfig) -> Ensemble:
        found["placed"].append(ens)
        return placed(ens, recipe)

    def climb(ens: Ensemble, *_: object, sources: dict[str, Ensemble], **__: object) -> None:
        found.update(ens=ens, sources=sources)
        raise SeenError

    for module in (squint.study.run, squint.study.attack):
        monkeypatch.setattr(module, "placed", place)
    monkeypatch.setattr(squint.study.run, "ladder_report", climb)
    monkeypatch.setattr(squint.study.ladder, "ladder_report", climb)
    return found


def check(seen: dict[str, Any]) -> None:
    assert list(seen["sources"]) == ["plain"]
    for ens in (seen["ens"], *seen["sources"].values()):
        assert any(ens is each for each in seen["placed"])


def test_a_study_s_networks_and_sources(tmp_path: Path, seen: dict[str, Any]) -> None:
    with pytest.raises(SeenError):
        run_study(tiny(attack={"ladder": "quick"}, headline="noisy"), tmp_path / "run", only=["noisy"])
    check(seen)


def test_an_attack_s_networks_and_sources(tmp_path: Path, seen: dict[str, Any]) -> None:
    run = finished(tmp_path / "run")
    with pytest.raises(SeenError):
        attack_weights(run, AttackOptions(attacks=("quick",), systems=("noisy",), images=4), Silence())
    check(seen)


def test_the_device_is_the_recipe_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ens = Ensemble([torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))])

    def to(device: str) -> Ensemble:
        asked.append(device)
        return ens

    monkeypatch.setattr(ens, "to", to)
    for available, accelerator in ((True, "auto"), (True, "cpu"), (False, "auto")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert placed(ens, tiny(train={"accelerator": accelerator})) is ens
    assert asked == ["cuda", "cpu", "cpu"]
