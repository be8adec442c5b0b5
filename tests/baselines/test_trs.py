"""TRS: its two terms on known gradients, and its search on a member whose steepest point is known."""

from __future__ import annotations

import math

import pytest
import torch

from squint._checks import InputError
from squint._random import noise
from squint.baselines import make_rival
from squint.baselines.fixed_pass import FixedPass
from squint.baselines.trs import magnitudes, similarity, steepest_points
from squint.ensemble import Ensemble
from tests.baselines.models import logistic, value
from tests.baselines.tiny import setup_of, source

SLOPES = (torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 4.0]))


def members() -> Ensemble:
    return Ensemble([logistic(slope) for slope in SLOPES], 1)


def test_similarity_is_the_mean_magnitude_of_the_cosines() -> None:
    gradients = torch.tensor([[[1.0, 0.0]], [[-3.0, 4.0]], [[0.0, 7.0]]])
    assert float(similarity(gradients)) == pytest.approx((0.6 + 0.0 + 0.8) / 3)


def test_magnitude_is_twice_the_squared_length() -> None:
    gradients = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]])
    assert magnitudes(gradients).tolist() == pytest.approx([26.0, 4.0])


def test_the_search_finds_the_corner_where_the_gradient_is_longest() -> None:
    """A logistic member's gradient sigmoid(w.x) w grows along w: the corner x + eps sign(w) is steepest."""
    slope = torch.tensor([1.0, -2.0, 0.5])
    x, y = torch.full((4, 1, 1, 3), 0.5), torch.zeros(4, dtype=torch.long)
    with noise(source()):
        found = steepest_points(FixedPass(Ensemble([logistic(slope)], 1), x, 1), x, y, 0.1, 6)
    assert torch.allclose(found, x + 0.1 * slope.sign())


def test_the_loss_without_search() -> None:
    x, y = torch.tensor([0.2, 0.7]).view(1, 1, 1, 2), torch.tensor([0])
    rival = make_rival("trs", {"adversarial": False, "scale": 3.0, "similarity": 0.5, "smoothness": 0.25})
    terms = rival.objective(setup_of("trs"))(members(), x, y, 0)
    sizes = []
    for slope in SLOPES:
        share = 1 / (1 + math.exp(-float(slope @ x.flatten())))
        sizes.append(2 * (share * float(slope.norm())) ** 2)
    assert value(terms["similarity"]) == pytest.approx(3.0 / 2 * 0.5 * 0.6)
    assert value(terms["smoothness"]) == pytest.approx(3.0 / 2 * 0.25 * sum(sizes) / 2, rel=1e-5)
    assert rival.tier == "B"


def test_the_search_sees_the_second_half_and_raises_the_term() -> None:
    x = torch.full((4, 1, 1, 2), 0.5)
    y = torch.zeros(4, dtype=torch.long)
    terms = {}
    for adversarial in (False, True):
        rival = make_rival("trs", {"adversarial": adversarial, "eps": "0.2"})
        with noise(source()):
            terms[adversarial] = rival.objective(setup_of("trs"))(members(), x, y, 0)
    assert value(terms[True]["smoothness"]) > value(terms[False]["smoothness"])
    assert value(terms[True]["similarity"]) == pytest.approx(value(terms[False]["similarity"]))


def test_the_search_stays_in_its_radius_over_several_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    reaches: list[float] = []

    def spied(fixed: FixedPass, x: torch.Tensor, y: torch.Tensor, reach: float, steps: int) -> torch.Tensor:
        reaches.append(reach)
        return steepest_points(fixed, x, y, reach, steps)

    monkeypatch.setattr("squint.baselines.trs.steepest_points", spied)
    setup = setup_of("trs")
    objective = make_rival("trs", {"eps": "8/255"}).objective(setup)
    x, y = torch.full((4, 1, 1, 2), 0.5), torch.zeros(4, dtype=torch.long)
    for step in (0, setup.total_steps // 2, setup.total_steps, 3 * setup.total_steps):
        with noise(source()):
            objective(members(), x, y, step)
    assert reaches == pytest.approx([4 / 255, 6 / 255, 8 / 255, 8 / 255], rel=0.02)


def test_a_study_without_radius_is_refused() -> None:
    with pytest.raises(InputError, match="eps is 0; rival trs allowed: above 0"):
        make_rival("trs").check(setup_of("trs", eps=0.0))
    make_rival("trs", {"adversarial": False}).check(setup_of("trs", eps=0.0))
