"""CURE on a logistic member: the gradient sigmoid(w.x) w changes by a known amount along its sign."""

from __future__ import annotations

import pytest
import torch

from squint.baselines import make_rival
from squint.baselines.cure import sign_direction
from squint.ensemble import Ensemble
from tests.baselines.models import logistic, value
from tests.baselines.tiny import setup_of


def test_the_direction_has_length_one() -> None:
    gradient = torch.tensor([[0.1, -5.0, 3.0, -1e-9], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert sign_direction(gradient).tolist() == [[0.5, -0.5, 0.5, -0.5], [0, 0, 1, 0], [0, 0, 0, 0]]


def change(slope: torch.Tensor, x: torch.Tensor, step: float) -> float:
    """The squared change of the gradient over a step along sign(w)/||sign(w)||."""
    moved = x + step * slope.sign() / slope.sign().norm()
    shares = torch.sigmoid(moved @ slope) - torch.sigmoid(x @ slope)
    return float((shares.square() * slope.square().sum()).mean())


def test_the_penalty_is_the_squared_change_of_the_gradient() -> None:
    slopes = [torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)]
    x = torch.tensor([[0.1, 0.9], [0.6, 0.3]], dtype=torch.float64)
    ens = Ensemble([logistic(slope) for slope in slopes], 1)
    rival = make_rival("cure", {"strength": 4.0, "step": 1.5, "warmup": 0.0})
    terms = rival.objective(setup_of("cure"))(ens, x.view(2, 1, 1, 2), torch.zeros(2, dtype=torch.long), 0)
    expected = 4.0 * sum(change(slope, x, 1.5) for slope in slopes) / 2
    assert value(terms["curvature"]) == pytest.approx(expected)


def test_the_step_rises_over_the_warm_up() -> None:
    slope, x = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    objective = make_rival("cure", {"strength": 1.0, "step": 1.0, "warmup": 0.5}).objective(
        setup_of("cure", total_steps=8)
    )
    for step, length in ((0, 0.25), (1, 0.5), (3, 1.0), (7, 1.0)):
        ens = Ensemble([logistic(slope)], 1)
        term = objective(ens, x.view(1, 1, 1, 2), torch.tensor([0]), step)["curvature"]
        assert value(term) == pytest.approx(change(slope, x, length))


def test_a_small_step_is_a_derivative() -> None:
    assert make_rival("cure").tier == "C"
    assert make_rival("cure", {"step": 0.05}).tier == "B"
