"""A checkpoint knows the network and the objective of its training: others of the same shapes are refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from tests.training.nets import ensemble, network, toy_data
from tests.training.settings import config, same
from tests.training.test_resume import stopping_at
from torch import Tensor

import squint
from squint import _ranks
from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.training import EnsembleObjective, ObjectiveConfig, TrainingStopped, Watcher, fit

OBJECTIVE = EnsembleObjective(ObjectiveConfig(), 2, 4)


def doubled(ens: Ensemble, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
    """An objective of somebody's own."""
    return {name: 2 * term for name, term in OBJECTIVE(ens, x, y, step).items()}


def of(bits: int = 4, noise: str = "uniform", gradient: str = "expected", width: float = 1.0) -> Ensemble:
    net = squint.quantize(network(1), 4, 4, 2, first_last_bits=bits, noise=noise, width=width)
    squint.set_gradient(net, gradient)
    return Ensemble([net], 2)


def test_only_what_the_weights_do_not_hold_makes_another_network(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(TrainingStopped):
        fit(of(), toy_data(), config(), checkpoint=path, watcher=stopping_at(1))
    content = path.read_bytes()
    untouched = Watcher(on_step=lambda *_: pytest.fail("was trained"))
    for other in (of(bits=3), of(noise="logistic"), of(gradient="straight_through")):
        # Their weights have the same names and shapes.
        assert {n: v.shape for n, v in other.state_dict().items()} == {
            n: v.shape for n, v in of().state_dict().items()
        }
        with pytest.raises(InputError, match=r"is of a training of a network of other layers or quantizers"):
            fit(other, toy_data(), config(), checkpoint=path, watcher=untouched)
    assert path.read_bytes() == content
    # The width of the noise lies in the file.
    whole, again = of(), of(width=0.5)
    fit(whole, toy_data(), config())
    fit(again, toy_data(), config(), checkpoint=path)
    assert same(again, whole)


def test_another_objective_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(TrainingStopped):
        fit(ensemble(), toy_data(), config(), doubled, checkpoint=path, watcher=stopping_at(1))
    with pytest.raises(InputError, match="is of a training with another objective: give it the one"):
        fit(ensemble(), toy_data(), config(), checkpoint=path)
    whole, again = ensemble(), ensemble()
    fit(whole, toy_data(), config(), doubled)
    fit(again, toy_data(), config(), copy.copy(doubled), checkpoint=path)
    assert same(again, whole)


def test_processes_with_other_images_do_not_train_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # What a second process says that has other images.
    monkeypatch.setattr(_ranks, "exchange", lambda value: [value, ["0" * 12, value[1]]])
    with pytest.raises(InputError, match=r"^the hashes of the training data .* in process 0 and \['0000"):
        fit(ensemble(), toy_data(), config(), checkpoint=tmp_path / "checkpoint")
