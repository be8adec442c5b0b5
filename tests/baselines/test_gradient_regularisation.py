"""Input-gradient regularisation on a linear classifier, whose gradient is W^T (p - e_y)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from squint._checks import InputError
from squint.baselines import make_rival
from squint.ensemble import Ensemble
from squint.training import ObjectiveConfig
from tests.baselines.models import linear, value
from tests.baselines.tiny import setup_of, source

NAME = "gradient-regularisation"


def test_the_penalty_is_the_squared_norm() -> None:
    weight = torch.randn(3, 4, generator=source(), dtype=torch.float64)
    x = torch.rand(5, 1, 2, 2, generator=source(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1])
    residual = (x.flatten(1) @ weight.T).softmax(1) - F.one_hot(y, 3)
    expected = float((residual @ weight).square().sum(1).mean())
    ens = Ensemble([linear(weight)], 1)
    for kind, tolerance in (("double_backward", 1e-12), ("finite_difference", 1e-3)):
        # A finite difference is off by half its step times the curvature over the gradient.
        rival = make_rival(NAME, {"strength": 0.3, "kind": kind, "step": 1e-4, "warmup": 0.0})
        terms = rival.objective(setup_of(NAME))(ens, x, y, 0)
        assert value(terms["smoothness"]) == pytest.approx(0.3 * expected, rel=tolerance)


def test_it_stands_beside_the_systems_other_terms() -> None:
    rival = make_rival(NAME, {"warmup": 0.0})
    setup = setup_of(NAME, objective=ObjectiveConfig(ensemble=1.0))
    rival.check(setup)
    ens = Ensemble([linear(torch.eye(3))], 1)
    x = torch.rand(2, 1, 1, 3, generator=source())
    assert rival.objective(setup)(ens, x, torch.tensor([0, 1]), 0).keys() == {
        "member_ce",
        "ensemble_ce",
        "smoothness",
    }
    with pytest.raises(
        InputError, match=r"objective\.smoothness is 1; rival gradient-regularisation allowed: 0"
    ):
        rival.check(setup_of(NAME, objective=ObjectiveConfig(smoothness=1.0)))
