"""Threat models of the plane: their names, their settings and where transfer starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.evaluation.threats import PlaneBudget, Threat, deterministic_twin, named_threats, threat_names
from squint.quantize import calibrate, quantize


def test_names_of_threats() -> None:
    every = named_threats(
        [name for name in threat_names() if not name.startswith("corruption:")], PlaneBudget()
    )
    assert len(every) == 9 + 13
    for bad, words in (
        (["linf-pdg"], "did you mean 'linf-pgd'"),
        (["corruption:frog"], "did you mean"),
        (["square", "square"], "each once"),
        ([], "one or more"),
        ([Threat("clean", lambda _, x, *__: x)], "none called 'clean'"),
    ):
        with pytest.raises(InputError, match=words):
            named_threats(bad, PlaneBudget())


def test_the_twin_rounds_and_the_original_does_not() -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    ens = Ensemble([quantize(net, 4, 4, 2)], draws=1)
    calibrate(ens, x)
    twin = deterministic_twin(ens)
    assert torch.equal(twin(x), twin(x))
    assert not torch.equal(ens(x), ens(x))


@pytest.mark.parametrize("elements", [1, 2, 3])
def test_radii_of_l2_balls_have_the_volume_of_the_cube(elements: int) -> None:
    (l2,) = named_threats(["noise-l2"], PlaneBudget())
    (at,) = l2.settings([100 / 255], [], elements)
    # Length 2r, area πr² and volume 4/3 πr³ of the ball against 2, 4 and 8 of the cube of half side 1.
    radius = {1: 1.0, 2: math.sqrt(4 / math.pi), 3: (6 / math.pi) ** (1 / 3)}[elements]
    assert at.eps == f"{round(100 * radius)}/255"
    assert at.size == round(100 * radius) / 255


def test_radii_that_meet_are_one_point_and_0_is_refused() -> None:
    (l2,) = named_threats(["noise-l2"], PlaneBudget())
    assert [at.eps for at in l2.settings([0.1 / 255, 0.2 / 255], [], 3)] == ["1/255"]
    for threat in named_threats(["noise-linf", "noise-l2"], PlaneBudget()):
        with pytest.raises(InputError, match="eps is 0; allowed: radii above 0"):
            threat.settings(["0", "8/255"], [], 64)


def test_settings_come_in_order_and_noise_has_its_norm() -> None:
    (linf,) = named_threats(["noise-linf"], PlaneBudget())
    settings = linf.settings(["8/255", 2 / 255, "8/255"], [], 64)
    assert [at.eps for at in settings] == ["2/255", "8/255"]
    x = torch.full((2, 1, 8, 8), 0.5)
    y = torch.zeros(2, dtype=torch.long)
    noisy = linf.run(None, x, y, settings[1].size, torch.Generator().manual_seed(0))
    assert torch.allclose((noisy - x).abs(), torch.tensor(8 / 255))
    (fog,) = named_threats(["corruption:fog"], PlaneBudget())
    assert [(at.eps, at.strength) for at in fog.settings([], [4, 2], 64)] == [
        ("strength 2", 2),
        ("strength 4", 4),
    ]
