"""Planted images climbed together: heads that belong to their batch, and a ladder that drops no image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from squint._checks import InputError
from squint.evaluation import ladder_report
from squint.evaluation.active import active_tests
from squint.evaluation.budgets import EXHAUSTIVE, STANDARD, Budget, Rung, tiny
from squint.evaluation.ladder import as_attack, climb, gains_by_batches
from squint.evaluation.planted import plant
from tests.evaluation.graveyard import nets
from tests.evaluation.ladder_models import NoisyPair
from tests.evaluation.test_planted import EPS, one_bit


def short(budget: Budget) -> Budget:
    """Return the same kinds of attack with as few steps as they take."""

    def less(rung: Rung) -> Rung:
        return replace(rung, moves=tuple(replace(m, steps=6, eot=2, refine=1, runs=2) for m in rung.moves))

    return replace(budget, rungs=tuple(less(rung) for rung in budget.rungs), max_gradients=None)


def test_every_kind_of_attack_takes_a_planted_batch() -> None:
    x, y = nets.images(3)
    trap = plant(one_bit(), x, y, EPS, num_classes=10, draws=4, resubmissions=8, seed=0)
    budget = short(STANDARD)
    found = climb(trap.model, trap.x, y, EPS, budget, seed=1, resubmissions=8, retire=False)
    assert [run.survivors for run in found.rungs] == [3] * 6
    assert not any(run.skipped for run in found.rungs)
    with pytest.raises(InputError, match="planted batches of 1"):
        climb(trap.model, trap.x, y, EPS, budget, seed=1, resubmissions=8)


def test_an_image_that_always_errs_is_attacked_to_the_end() -> None:
    model = NoisyPair()
    x, y = torch.rand(6, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    kept = climb(model, x, y, 0.5, tiny(), retire=False)
    dropped = climb(model, x, y, 0.5, tiny())
    assert [run.survivors for run in kept.rungs] == [6, 6]
    assert dropped.rungs[0].survivors < 6


def test_points_planted_together_are_found_as_one_by_one() -> None:
    x, y = nets.images(6)
    found = {}
    for batch, retire in ((1, True), (6, False)):
        attack = as_attack(tiny(20, 8), retire=retire)
        tests = active_tests(
            one_bit(),
            (x, y),
            EPS,
            seed=0,
            attack=as_attack(tiny()),
            planted_attack=attack,
            planted=6,
            planted_batch=batch,
            draws=4,
            resubmissions=16,
        )
        found[batch] = (tests.planted_found, tests.planted_total)
    # A batch shares how many draws its copy averages, so that one point or another may not be sound.
    for hits, total in found.values():
        assert hits == total >= 5


def test_a_gpu_is_given_planted_images_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ens = one_bit()
    assert not gains_by_batches(ens, STANDARD)
    monkeypatch.setattr("squint.evaluation.ladder.device_of", lambda _: torch.device("cuda"))
    assert gains_by_batches(ens, STANDARD)
    assert not gains_by_batches(ens, EXHAUSTIVE)
    assert not gains_by_batches(lambda x: x, STANDARD)
    asked: dict[str, Any] = {}

    def note(*_: Any, **given: Any) -> Any:
        asked.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder_report, "active_tests", note)
    monkeypatch.setattr(ladder_report, "preflight", lambda *_, **__: [])
    x, y = nets.images(4)
    budget = replace(tiny(1, 1), name="standard")
    with pytest.raises(KeyboardInterrupt):
        ladder_report.ladder_report(
            ens,
            (x, y),
            [EPS],
            budget,
            system="one bit",
            draws=4,
            resubmissions=4,
            seed=0,
            limit=None,
            batch_size=4,
            tier="A",
            sources=None,
            folder=None,
            progress=None,
        )
    assert asked["planted_batch"] == 4
    assert asked["planted_attack"] is not None
