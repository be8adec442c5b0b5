"""What `evaluate` attacks in a network's place is the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import squint
from squint import data as D
from squint.attacks.gradients import AnyModel
from squint.evaluation import RobustnessReport, evaluate
from squint.evaluation.gradient_flags import Fidelity, fidelity
from squint.evaluation.preflight import preflight
from squint.evaluation.preflight_runs import Probes


def ensemble(data: D.ImageData, *, quantized: bool) -> squint.Ensemble:
    squint.seed(11)
    nets: list[nn.Module] = [squint.models.small_cnn(in_channels=1, width=4) for _ in range(2)]
    if quantized:
        nets = [squint.quantize(net, 4, 2, activation_width=0.0) for net in nets]
    ens = squint.Ensemble(nets, draws=2)
    squint.fit(ens, data, squint.TrainConfig(epochs=4, batch_size=64, learning_rate=0.01, average=0.9))
    return ens.eval()


@pytest.mark.parametrize("quantized", [False, True])
def test_the_copy_that_is_attacked_is_the_model(*, quantized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = squint.data.load("digits")
    model = ensemble(data.train, quantized=quantized)

    def attacked() -> RobustnessReport:
        return evaluate(model, data.test, "24/255", "seed", limit=40, resubmissions=32)

    (copied,) = attacked().outcomes
    asked: list[bool] = []

    def itself(found: nn.Module, *, precise: bool) -> nn.Module:
        asked.append(precise)
        return found

    monkeypatch.setattr("squint.evaluation.robustness.frozen", itself)
    (own,) = attacked().outcomes
    assert asked == [True]
    if quantized:
        # Exact sums may move a value over a threshold; draws of another seed move the shares by 0.05.
        assert float((copied.correct - own.correct).abs().mean()) < 0.02
    else:
        assert torch.equal(copied.adversarial, own.adversarial)
        assert torch.equal(copied.correct, own.correct)


def test_preflight_looks_at_the_gradients_of_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = squint.data.load("digits")
    model = ensemble(data.train, quantized=True)
    asked: list[tuple[AnyModel, float, float]] = []

    def watched(given: AnyModel, *arguments: Any, **options: Any) -> Fidelity:
        measured = fidelity(given, *arguments, **options)
        asked.append((given, measured.ratio, fidelity(model, *arguments, **options).ratio))
        return measured

    monkeypatch.setattr("squint.evaluation.preflight.fidelity", watched)
    probes = Probes(
        images=12, eps_factors=(1.0,), steps=(5, 10), eot=(1,), restarts=(1,), square_steps=20,
        spsa_steps=2, spsa_directions=4, fidelity_draws=64, resubmissions=4,
    )  # fmt: skip
    preflight(model, data.test, "24/255", seed=0, probes=probes)
    ((given, of_copy, of_model),) = asked
    assert given is not model
    # The same draws and images: what sums on codes round is far below the ratio's own error.
    assert of_copy == pytest.approx(of_model, abs=0.01)
