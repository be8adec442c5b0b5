"""Planted points behind noise: what the construction promises, and that a masked gradient finds none."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint import attacks
from squint.attacks.gradients import AnyModel
from squint.evaluation import planted
from squint.evaluation.active import active_tests
from squint.evaluation.active_findings import FEWEST_PLANTED
from squint.evaluation.planted import ELSEWHERE, RIGHT, WRONG, Planted, plant
from squint.evaluation.planted_head import PlantedHead
from squint.evaluation.scoring import score
from squint.evaluation.white_box import WhiteBox
from tests.evaluation.graveyard import nets

WEIGHTS = Path(__file__).parents[1] / "attacks" / "weights"
EPS = 32 / 255
N = 10
TRIES = 32


@cache
def one_bit() -> squint.Ensemble:
    """A trained network behind a 1-bit stochastic input."""
    return squint.load(WEIGHTS / "stochastic.safetensors").eval().requires_grad_(False)


@cache
def trapped() -> Planted:
    x, y = nets.images(N)
    return plant(one_bit(), x, y, EPS, num_classes=10, draws=4, resubmissions=TRIES, seed=0)


class Hidden(nn.Module):
    """Stochastic rounding whose surrogate is left out: noise, and a gradient of zero."""

    def __init__(self, net: nn.Module, bits: int) -> None:
        super().__init__()
        self.quantizer, self.net = squint.StochasticQuantizer(bits), net

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(self.quantizer(x).detach()))


def pgd(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    return attacks.pgd(model, x, y, eps=eps, steps=10, eot=4, generator=generator)


def errors(head: PlantedHead, mean: Tensor, averaged: int) -> float:
    """Return the share of deployments on features N(mean, I) that answer the target, class 1."""
    generator = torch.Generator().manual_seed(9)
    features = mean + torch.randn(2000 * averaged, len(mean), generator=generator)
    p = head(features).softmax(-1).view(2000, averaged, -1).mean(1)
    return float((p.argmax(-1) == 1).double().mean())


@pytest.mark.parametrize("distance", [1.4, 3.0, 8.0])
def test_the_boundary_leaves_room_for_noise_on_both_sides(distance: float) -> None:
    # Two unit Gaussians `distance` apart: a deployment of 4 draws tells them apart by twice the distance.
    generator = torch.Generator().manual_seed(0)
    goal = torch.zeros(8)
    goal[0] = distance
    near = torch.randn(97, 8, 1, 8, generator=generator)
    there = goal + torch.randn(256, 1, 8, generator=generator)
    head = PlantedHead(None, 3, 1)
    head.fit(near, there, torch.tensor([0]), torch.tensor([1]), averaged=4)
    best = float(torch.special.ndtr(torch.tensor(distance)))
    # No boundary errs less on both sides than the one in the middle; six points for estimation and softmax.
    assert errors(head, torch.zeros(8), 4) <= 1 - min(best, 0.95) + 0.06
    assert errors(head, goal, 4) >= min(best, 0.95) - 0.06


def test_noise_of_one_bit_hides_few_points() -> None:
    trap = trapped()
    assert float((trap.points - nets.images(N)[0]).abs().max()) <= EPS + 1e-6
    assert int(trap.sound.sum()) >= N // 2
    assert cast(squint.Ensemble, trap.model).draws == trap.draws


def test_sound_points_are_wrong_and_their_surroundings_are_not() -> None:
    trap, (x, y) = trapped(), nets.images(N)
    generator = torch.Generator().manual_seed(1)
    around = (x + EPS * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    shares = [
        float(
            score(trap.model, points, y, draws=trap.draws, resubmissions=TRIES, seed=5, keys=())
            .correct[trap.sound]
            .mean()
        )
        for points in (x, around, trap.points)
    ]
    # Chosen on other noise: a share of 32 has a standard error of 0.053 at 0.9, and half again as much is
    # allowed to the mean of five or more.
    assert shares[0] >= RIGHT - 0.08
    assert shares[1] >= ELSEWHERE - 0.08
    assert shares[2] <= 1 - WRONG + 0.08


def test_steering_reaches_further_than_a_random_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = nets.images(N)
    monkeypatch.setattr(planted, "_MORE_DRAWS", (1,))
    sound = {}
    for steps in (0, 6):
        monkeypatch.setattr(planted, "_STEER_STEPS", steps)
        trap = plant(one_bit(), x, y, EPS, num_classes=10, draws=4, resubmissions=TRIES, seed=0)
        sound[steps] = int(trap.sound.sum())
    assert sound[6] > sound[0]


def test_an_honest_attack_finds_points_behind_one_bit() -> None:
    result = active_tests(
        one_bit(),
        nets.images(N),
        EPS,
        seed=0,
        attack=WhiteBox(steps=8, eot=16),
        images=N,
        planted=N,
        resubmissions=TRIES,
    )
    assert result.planted_total >= N // 2
    assert result.planted_found >= 0.95 * result.planted_total


def test_a_hidden_gradient_behind_noise_misses_them() -> None:
    model = squint.Ensemble([Hidden(nets.undefended(), 2)], draws=4).eval()
    result = active_tests(
        model, nets.images(12), nets.EPS, seed=0, attack=pgd, images=12, planted=12, resubmissions=TRIES
    )
    assert result.planted_total >= FEWEST_PLANTED
    assert "planted_missed" in {finding.kind for finding in result.findings}


def pair() -> nets.RandomPick:
    """Two small networks, one of which answers each call."""

    def net(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    return nets.RandomPick([net(1), net(2)]).eval()


def test_every_layer_that_may_answer_gets_the_planted_point() -> None:
    """Eight calls leave one of two networks out at one neighbour in 128, and there are 97 points."""
    x, y = nets.images(N)
    trap = plant(pair(), x, y, EPS, num_classes=10, draws=1, resubmissions=TRIES, seed=0)
    assert sum(isinstance(part, PlantedHead) for part in cast(nn.Module, trap.model).modules()) == 2
    assert bool(trap.sound.all()), "without noise in the features a corner is told from the rest"
    again = score(trap.model, trap.points, y, draws=1, resubmissions=TRIES, seed=7, keys=())
    assert float(again.correct.max()) == 0.0


class Seldom(nets.RandomPick):
    """The second network answers only the first call after it was built or copied."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return cast(Tensor, self.members[int(self.calls == 1)](x))


def test_a_layer_that_runs_too_seldom_is_refused() -> None:
    x, y = nets.images(2)
    rare = Seldom([*pair().members]).eval()
    with pytest.raises(squint.InputError, match="Seldom runs one of its last linear layers too seldom"):
        plant(rare, x, y, EPS, num_classes=10, draws=1, resubmissions=4, seed=0)
