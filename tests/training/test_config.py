from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from squint._checks import InputError
from squint.training import ObjectiveConfig, TrainConfig


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (TrainConfig, {"epochs": -1}, "TrainConfig: epochs is -1: .*greater than or equal to 0"),
        (TrainConfig, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (TrainConfig, {"learning_rate": float("inf")}, "learning_rate is inf"),
        (TrainConfig, {"batch_size": 1}, "batch_size is 1"),
        (TrainConfig, {"step_floor": -0.1}, "step_floor is -0.1: .*greater than or equal to 0"),
        (TrainConfig, {"step_floor": 10.5}, "step_floor is 10.5: .*less than or equal to 10"),
        (TrainConfig, {"optimizer": "adam"}, "optimizer is 'adam': .*'sgd', 'adamw' or 'muon'"),
        (TrainConfig, {"epoch": 3}, r"unknown field epoch \(did you mean 'epochs'\?\)"),
        (TrainConfig, {"epochs": -1, "seed": -1}, "epochs is -1.*; seed is -1"),
        (TrainConfig, {"objective": {"agreement": -1}}, "objective.agreement is -1"),
        (ObjectiveConfig, {"redundancy": float("nan")}, "redundancy is nan"),
        (ObjectiveConfig, {"smoothness_step": 0}, "smoothness_step is 0"),
        (ObjectiveConfig, {"agreement_warmup": 1.5}, "agreement_warmup is 1.5"),
        (ObjectiveConfig, {"smoothness_kind": "hessian"}, "smoothness_kind is 'hessian'"),
    ],
)
def test_wrong_values_are_one_line(kind: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        kind(**values)
    assert "\n" not in str(caught.value)


def test_copies_are_checked_and_configurations_frozen() -> None:
    config = TrainConfig()
    assert replace(config, epochs=3).epochs == 3
    with pytest.raises(InputError, match="epochs"):
        replace(config, epochs=-3)
    with pytest.raises(FrozenInstanceError):
        config.epochs = 2
    assert TrainConfig(objective={"agreement": 2}).objective == ObjectiveConfig(agreement=2)  # type: ignore[arg-type]


def test_penalties_on_the_input_gradient_are_tier_b() -> None:
    assert ObjectiveConfig(agreement=40, redundancy=1).tier == "A"
    assert ObjectiveConfig(smoothness=0.1).tier == "B"
    assert ObjectiveConfig(smoothness=4, smoothness_kind="double_backward", smoothness_step=1.5).tier == "B"


def test_a_difference_over_a_finite_step_is_tier_c() -> None:
    assert ObjectiveConfig(smoothness_step=1.5).tier == "A"
    for kind in ("finite_difference", "curvature"):
        tiers = [
            ObjectiveConfig(smoothness=4, smoothness_kind=kind, smoothness_step=h).tier for h in (0.1, 1.5)
        ]
        assert tiers == ["B", "C"]
