"""What `fit` takes as data and objective, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.training.nets import ensemble, network, toy_data
from tests.training.settings import config, same
from torch import Tensor

import squint
from squint._checks import InputError, InputTypeError
from squint.ensemble import Ensemble
from squint.quantize import needs_calibration, quantizers
from squint.training import ObjectiveConfig, Watcher, fit


def constant(value: float) -> Callable[..., dict[str, Tensor]]:
    def objective(ens: Any, x: Tensor, _y: Tensor, _step: int) -> dict[str, Tensor]:
        return {"first": ens(x).mean(), "second": torch.tensor(value)}

    return objective


class Exploding(torch.autograd.Function):
    """A finite value with an infinite gradient."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


@pytest.mark.parametrize(
    ("objective", "error", "words"),
    [
        (constant(float("nan")), InputError, "not finite at step 0 .*second nan"),
        (constant(float("inf")), InputError, "second inf"),
        (lambda *_: {}, InputTypeError, "dict of named terms"),
        (lambda *_: torch.tensor(1.0), InputTypeError, "dict of named terms"),
        (lambda *_: {"a": 1.0}, InputTypeError, "each a tensor"),
        (lambda _e, x, *_: {"a": x}, InputTypeError, "one number"),
        (lambda _e, x, *_: {"a": x.sum()}, InputError, "do not depend on the weights"),
        (lambda e, x, *_: {"a": Exploding.apply(e(x)).sum()}, InputError, "gradient is not finite"),  # type: ignore[no-untyped-call]
    ],
    # Functions print with their address, and processes that share out the tests must name them alike.
    ids=["nan", "inf", "no terms", "no names", "no tensor", "images", "no weights", "infinite gradient"],
)
def test_objectives_that_cannot_train_are_refused(objective: Any, error: type, words: str) -> None:
    ens = ensemble()
    with pytest.raises(error, match=words):
        fit(ens, toy_data(), config(), objective)
    assert not ens.training
    assert all(parameter.grad is None for parameter in ens.parameters())


X, Y = toy_data()


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        ((X * 255, Y), {}, r"allowed: \[0, 1\]"),
        ((X, Y + 1), {}, r"values in \[1, 3\]; allowed: 0..2"),
        ((X, Y - 1), {}, "0 and above"),
        ((X, Y[:-1]), {}, "labels has shape"),
        ((X, Y.float()), {}, "labels has shape"),
        ((X[:0], Y[:0]), {}, "non-empty"),
        ((X.expand(-1, 2, -1, -1), Y), {}, "(do not fit|cannot|channels)"),
        ([], {}, "no batches"),
        ((X, Y), {"batch_size": 49}, "at most the 48 images"),
        ((X, Y), {"objective": ObjectiveConfig(agreement=1.0), "draws": 1}, "draws of 2 or more"),
    ],
)
def test_bad_data_is_refused(data: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit(ensemble(), data, config(**settings))


def test_bad_validation_data_is_refused_before_the_first_step() -> None:
    steps: list[int] = []
    watcher = Watcher(on_step=lambda done, _: steps.append(done))
    for validation in ((X + 1, Y), (X, Y + 5), [(X, Y + 5)]):
        with pytest.raises(InputError):
            fit(ensemble(), toy_data(), config(), validation=validation, watcher=watcher)
    assert steps == []


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InputTypeError, match=r"needs a squint\.Ensemble, got Sequential"):
        fit(network(1), toy_data(), config())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no trainable parameters"):
        fit(Ensemble([network(1).requires_grad_(False)]), toy_data(), config())
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            fit(ensemble(), toy_data(), config(accelerator="cuda"))


def test_bytes_doubles_and_batches_train_alike() -> None:
    x = (X * 255).round().byte()
    results = []
    for data in ((x, Y), (x.double() / 255, Y), [(x[:20], Y[:20]), (x[20:], Y[20:])]):
        ens = ensemble()
        fit(ens, data, config(epochs=1))
        results.append(ens)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_ranges_that_are_there_are_kept_where_others_are_missing() -> None:
    (known, _), (_, fresh) = ensemble().members, ensemble().members
    squint.calibrate(known, X)
    step = next(q for q in quantizers(known) if q.ranged_by_data and not q.covers).step
    with torch.no_grad():
        step.mul_(0.5)
    before = step.detach().clone()
    fit(Ensemble([known, fresh], 2), (X, Y), config(epochs=0))
    assert torch.equal(step.detach(), before)
    assert not needs_calibration(fresh)
