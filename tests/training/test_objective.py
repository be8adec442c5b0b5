"""Schedules, warm-ups and which terms a step computes."""

from __future__ import annotations

import math

import pytest
import torch
from tests.training.nets import ensemble, network, source, toy_data

import squint
from squint._checks import InputError
from squint._random import noise
from squint.ensemble import Ensemble
from squint.training import EnsembleObjective, ObjectiveConfig, terms
from squint.training.objective import ramp
from squint.training.schedule import learning_rate


def test_one_cycle_rises_on_a_line_and_falls_on_a_cosine() -> None:
    rates = [learning_rate(step, 100, "one_cycle") for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == pytest.approx(0.52)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[80] == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)
    assert max(rates) == rates[20]
    assert all(rate > 0 for rate in rates)


def test_cosine_falls_and_constant_stays() -> None:
    assert learning_rate(0, 40, "cosine") == 1
    assert learning_rate(10, 40, "cosine") == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert learning_rate(20, 40, "cosine") == pytest.approx(0.5)
    assert {learning_rate(step, 40, "constant") for step in range(40)} == {1.0}
    assert learning_rate(0, 1, "one_cycle") == 1


def test_warm_ups_rise_on_a_line() -> None:
    assert [ramp(step, 100, 0.2) for step in (0, 5, 20, 99)] == [0, 0.25, 1, 1]
    assert ramp(0, 100, 0.0) == 1
    assert ramp(50, 100, 1.0) == 0.5


COEFFICIENTS = {"ensemble": 2.0, "redundancy": -0.3, "conditional_redundancy": 0.4, "agreement": 5.0}


def still() -> Ensemble:
    """Two networks without noise or batch normalization: every term can be computed by itself."""
    return Ensemble([network(1, norm=False), network(2, norm=False)]).train()


def test_terms_are_weighted_by_coefficients_and_warm_ups() -> None:
    config = ObjectiveConfig(**COEFFICIENTS, information_warmup=0.5, agreement_warmup=0.25)  # type: ignore[arg-type]
    objective = EnsembleObjective(config, 2, 100)
    ens = ensemble().train()
    squint.calibrate(ens, toy_data()[0])
    x, y = toy_data()
    with noise(source()):
        logits, features = ens.logits_and_features(x, 2)
    with noise(source()):
        out = objective(ens, x, y, 20)
    wanted = {
        "member_ce": terms.member_cross_entropy(logits, y),
        "ensemble_ce": 2 * terms.ensemble_cross_entropy(logits, y),
        "redundancy": -0.3 * 0.4 * terms.redundancy(features),
        "conditional_redundancy": 0.4 * 0.4 * terms.conditional_redundancy(features, y),
        "agreement": 5 * 0.8 * terms.agreement(logits),
    }
    assert out.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(out[name], value)


def test_terms_of_no_weight_are_not_there() -> None:
    x, y = toy_data()
    plain = EnsembleObjective(ObjectiveConfig(), 1, 10)(still(), x, y, 5)
    assert plain.keys() == {"member_ce"}
    config = ObjectiveConfig(**COEFFICIENTS, smoothness=1.0)  # type: ignore[arg-type]
    first = EnsembleObjective(config, 2, 10)(still(), x, y, 0)
    assert first.keys() == {"member_ce", "ensemble_ce"}
    alone = Ensemble([network(1)]).train()
    later = EnsembleObjective(config, 2, 10)(alone, x, y, 9)
    assert later.keys() == {"member_ce", "ensemble_ce", "agreement", "smoothness"}


def test_smoothness_is_the_input_gradient_of_the_mean_loss() -> None:
    ens = still()
    x, y = toy_data(8)
    config = ObjectiveConfig(smoothness=3.0, smoothness_kind="double_backward", smoothness_warmup=0.0)
    out = EnsembleObjective(config, 1, 1)(ens, x, y, 0)["smoothness"]
    wanted = 0.0
    for place in range(8):
        point = x[place : place + 1].clone().requires_grad_()
        losses = [torch.nn.functional.cross_entropy(m(point), y[place : place + 1]) for m in ens.members]
        (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), point)
        wanted += 3 * gradient.square().sum().item() / 8
    assert out.item() == pytest.approx(wanted, rel=1e-5)


def test_agreement_with_one_draw_is_refused() -> None:
    with pytest.raises(InputError, match=r"objective\.agreement is 1 with draws 1; allowed: draws of 2"):
        EnsembleObjective(ObjectiveConfig(agreement=1.0), 1, 10)
