"""Running out of memory: what is said, and what is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.nets import ensemble, toy_data
from tests.training.settings import STEPS, config, same
from torch import Tensor

from squint._checks import InputError
from squint._memory import is_out_of_memory
from squint.ensemble import Ensemble
from squint.training import EnsembleObjective, fit
from squint.training.config import ObjectiveConfig


class Hungry(EnsembleObjective):
    """An objective for whose `at`-th step there is no memory."""

    def __init__(self, at: int, error: Exception) -> None:
        super().__init__(ObjectiveConfig(), 1, 10)
        self.at, self.error = at, error

    def __call__(self, ens: Ensemble, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        if step == self.at:
            raise self.error
        return super().__call__(ens, x, y, step)


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_is_named_and_the_checkpoint_goes_on(error: Exception, tmp_path: Path) -> None:
    settings, path = config(), tmp_path / "checkpoint"
    straight = ensemble()
    fit(straight, toy_data(), settings, Hungry(-1, error))
    with pytest.raises(
        InputError,
        match="out of memory in training with batches of 24, 2 draws and 2 members: lower train.batch_size, "
        rf"training_draws or the network's width; with more memory the same training goes on from {path}",
    ):
        fit(ensemble(), toy_data(), settings, Hungry(STEPS + 1, error), checkpoint=path)
    again = ensemble()
    fit(again, toy_data(), settings, Hungry(-1, error), checkpoint=path)
    assert same(again, straight)


def test_without_a_checkpoint_none_is_promised() -> None:
    with pytest.raises(InputError, match=r"the network's width$"):
        fit(ensemble(), toy_data(), config(), Hungry(0, MemoryError()))


def test_torch_itself_is_understood() -> None:
    """What torch says when it is asked for more memory than there is."""
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**55)
    assert is_out_of_memory(refusal.value)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes do not fit"), KeyError("a")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error), match=str(error.args[0])):
            fit(ensemble(), toy_data(), config(), Hungry(0, error), checkpoint=tmp_path / "c")
