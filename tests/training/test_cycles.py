"""Trainings of several cycles: the schedule from its start, the average's weights, a new optimizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.training.nets import ensemble, toy_data
from tests.training.settings import FULL, STEPS, config, same
from tests.training.test_resume import stopping_at

from squint._files import read_tensors, write_tensors
from squint.training import TrainingStopped, Watcher, fit
from squint.training.schedule import cycle_length, learning_rate

KEY = "squint_checkpoint"


@pytest.mark.parametrize(("total", "cycles", "length"), [(36, 2, 18), (36, 1, 36), (5, 2, 3), (0, 3, 0)])
def test_cycles_are_equal_but_for_the_last(total: int, cycles: int, length: int) -> None:
    assert cycle_length(total, cycles) == length


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_second_cycle_goes_on_from_the_weights_that_the_first_would_have_kept(
    optimizer: str, tmp_path: Path
) -> None:
    both = config(**FULL, epochs=2, cycles=2, optimizer=optimizer, learning_rate=0.02)
    straight = ensemble(inner=True)
    fit(straight, toy_data(), both, checkpoint=tmp_path / "whole")

    # The first cycle, terms that rise included, is a training of half as many epochs.
    first = ensemble(inner=True)
    alone = config(**FULL, epochs=1, optimizer=optimizer, learning_rate=0.02)
    fit(first, toy_data(), alone)
    with pytest.raises(TrainingStopped):
        fit(ensemble(inner=True), toy_data(), both, checkpoint=tmp_path / "half", watcher=stopping_at(STEPS))
    tensors, metadata = read_tensors(tmp_path / "half")
    kept = {name: value for name, value in tensors.items() if name.startswith("average.")}
    assert kept.keys() == {f"average.{name}" for name in first.state_dict()}
    assert all(torch.equal(first.state_dict()[name.removeprefix("average.")], kept[name]) for name in kept)

    # Of the first cycle nothing else reaches the second: neither its last weights nor its optimizer.
    header = json.loads(metadata[KEY]) | {"numbers": {}}
    only = kept | {name.replace("average.", "module.", 1): value.clone() for name, value in kept.items()}
    write_tensors(tmp_path / "bare", only, {KEY: json.dumps(header)})
    again = ensemble(inner=True)
    fit(again, toy_data(), both, checkpoint=tmp_path / "bare")
    assert same(again, straight)
    assert not same(again, first)


def moves(cycles: int) -> list[float]:
    """Return how far each step goes, in clips, but the first, before which the quantizers are calibrated."""
    ens, seen = ensemble(), []
    before = [p.detach().clone() for p in ens.parameters()]

    def measure(_done: int, _total: int) -> None:
        now = [p.detach().clone() for p in ens.parameters()]
        squares = [(a - b).square().sum() for a, b in zip(now, before, strict=True)]
        seen.append(float(torch.stack(squares).sum().sqrt()))
        before[:] = now

    settings = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0}
    # Every gradient is longer than this, so that a step is as long as the learning rate says.
    clip = 1e-3
    entries = fit(
        ens,
        toy_data(),
        config(epochs=4, cycles=cycles, clip_gradient=clip, **settings),
        watcher=Watcher(on_step=measure),
    )
    assert len(entries) == 4
    return [length / clip for length in seen[1:]]


def test_every_cycle_has_the_whole_schedule() -> None:
    one = [learning_rate(step, 8, "one_cycle") for step in range(8)]
    two = [learning_rate(step, 4, "one_cycle") for step in range(4)] * 2
    assert moves(1) == pytest.approx(one[1:], rel=0.02)
    assert moves(2) == pytest.approx(two[1:], rel=0.02)
