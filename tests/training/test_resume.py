"""Stopping, continuing and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.nets import ensemble, toy_data
from tests.training.settings import EPOCHS, FULL, STEPS, config, same

from squint.training import TrainingStopped, Watcher, fit
from squint.training.interrupt import stop_requests


def without_seconds(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def stopping_at(step: int) -> Watcher:
    """A watcher that presses Ctrl-C after `step` steps."""

    def press(done: int, _total: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return Watcher(on_step=press)


@pytest.mark.parametrize(("optimizer", "dropout"), [("adamw", 0.3), ("sgd", 0.0)])
def test_stopped_and_continued_is_bit_identical_to_never_stopped(
    optimizer: str, dropout: float, tmp_path: Path
) -> None:
    settings = config(**FULL, optimizer=optimizer, learning_rate=0.02)
    straight = ensemble(dropout=dropout)
    wanted = fit(straight, toy_data(), settings, validation=toy_data(20), checkpoint=tmp_path / "whole")
    for stop in (1, STEPS, STEPS + 1):
        path = tmp_path / f"{stop}"
        with pytest.raises(TrainingStopped):
            fit(
                ensemble(dropout=dropout),
                toy_data(),
                settings,
                validation=toy_data(20),
                checkpoint=path,
                watcher=stopping_at(stop),
            )
        # Another process would start from other weights: all of them come from the file.
        again = ensemble(dropout=dropout)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.add_(1)
        torch.rand(3)
        entries = fit(again, toy_data(), settings, validation=toy_data(20), checkpoint=path)
        assert same(again, straight), stop
        assert without_seconds(entries) == without_seconds(wanted)
        assert all(entry["seconds"] > 0 for entry in entries)


def test_ctrl_c_stops_after_the_step_that_runs(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[int] = []

    def press(done: int, total: int) -> None:
        seen.append(done)
        assert total == EPOCHS * STEPS
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    ens = ensemble()
    with pytest.raises(KeyboardInterrupt):
        fit(ens, toy_data(), config(), checkpoint=tmp_path / "c", watcher=Watcher(on_step=press))
    assert seen == [1, 2]
    assert signal.getsignal(signal.SIGINT) is before
    assert not ens.training
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_second_ctrl_c_stops_at_once() -> None:
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_off_the_main_thread_leaves_signals_alone() -> None:
    outcome: list[Any] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: outcome.append(fit(ensemble(), toy_data(), config(epochs=1))))
    thread.start()
    thread.join()
    assert len(outcome[0]) == 1
    assert signal.getsignal(signal.SIGINT) is before
