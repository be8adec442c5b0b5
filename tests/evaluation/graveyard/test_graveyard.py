"""Defences that fell: each looks robust to what its paper ran, falls to the ladder's attacks, and is flagged.

Everything is seeded; the bounds were set, with some room, around the levels measured with these seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import squint
from squint import attacks
from squint.attacks.gradients import AnyModel
from squint.evaluation.budgets import Budget, Move, Rung
from squint.evaluation.flags import Comparison, excesses
from squint.evaluation.gradient_flags import fidelity, unfaithful, zero_gradients
from squint.evaluation.ladder import climb
from squint.evaluation.model_flags import probability_outputs
from squint.evaluation.scoring import score
from squint.evaluation.selection import DEPLOYED
from tests.evaluation.graveyard import nets

EPS = nets.EPS


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def paper_pgd(model: AnyModel) -> Tensor:
    """PGD-20 on the defence's own gradient, one draw."""
    return attacks.pgd(model, *nets.images(), eps=EPS, generator=seeded())


def targeted(model: AnyModel, eot: int = 1) -> Tensor:
    return attacks.targeted(
        model, *nets.images(), eps=EPS, steps=10, refine_steps=20, eot=eot, generator=seeded()
    )


def transferred(steps: int = 20) -> Tensor:
    return attacks.transfer([nets.undefended()], *nets.images(), eps=EPS, steps=steps, generator=seeded())


def black_box_flags(model: AnyModel, white: Tensor, black: Tensor) -> list[str]:
    y = nets.images()[1]
    lower, upper = (
        score(model, points, y, draws=1, resubmissions=16, seed=0, keys=("flags",)).correct
        for points in (black, white)
    )
    found = excesses([Comparison("black_box_beats_white_box", "transfer", lower, "PGD", upper)])
    return [finding.kind for finding in found]


def gradient_flags(model: AnyModel) -> list[str]:
    x, y = nets.images(50)
    found = [*zero_gradients(model, x, y, seed=0), unfaithful(fidelity(model, x, y, EPS, seed=0, draws=8))]
    return [finding.kind for finding in found if finding is not None]


def test_the_undefended_network_falls_and_shows_no_flag() -> None:
    model = nets.undefended()
    white = paper_pgd(model)
    assert nets.accuracy(model, white) <= 0.05
    assert gradient_flags(model) == []
    assert black_box_flags(model, white, transferred()) == []


def test_a_quantizer_without_a_gradient_falls_to_transfer() -> None:
    model = nets.zero_gradient()
    white, black = paper_pgd(model), transferred()
    assert nets.accuracy(model, white) >= 0.85
    assert nets.accuracy(model, black) <= 0.15
    assert "zero_gradients" in gradient_flags(model)
    assert black_box_flags(model, white, black) == ["black_box_beats_white_box"]


def test_a_binarized_network_with_saturated_logits_falls_to_the_margin() -> None:
    model = nets.binarized()
    assert nets.accuracy(model, paper_pgd(model)) >= 0.7
    assert nets.accuracy(model, targeted(model)) <= 0.05
    assert "zero_gradients" in gradient_flags(model)


def test_k_winners_take_all_falls_to_square() -> None:
    model = nets.k_winners()
    black = attacks.square(model, *nets.images(), eps=EPS, steps=500, generator=seeded())
    white = paper_pgd(model)
    assert nets.accuracy(model, white) >= 0.25
    assert nets.accuracy(model, black) <= 0.15
    assert black_box_flags(model, white, black) == ["black_box_beats_white_box"]
    assert gradient_flags(model) == ["unfaithful_gradient"]


def test_empir_falls_to_its_members() -> None:
    """The vote has no gradient; the mean probability of its members has."""
    model = nets.empir()
    white, x = paper_pgd(model), nets.images()[0]
    assert nets.accuracy(model, white) >= 0.85
    assert nets.accuracy(model, targeted(model.ensemble)) <= 0.05
    assert "zero_gradients" in gradient_flags(model)
    assert black_box_flags(model, white, transferred()) == ["black_box_beats_white_box"]
    assert probability_outputs(model, x, seed=0) is None


def test_a_random_pair_of_adversarially_trained_networks_is_no_better_than_its_members() -> None:
    """Dbouk and Shanbhag 2022: PGD on the expectation overstates it; ARC, and pooling, do not."""
    model = nets.random_pair()
    pair = squint.Ensemble(list(model.members), draws=1).eval()
    own = nets.accuracy(model, paper_pgd(model))
    alone = [nets.accuracy(member, paper_pgd(member)) for member in model.members]
    walked = attacks.arc(pair, *nets.images(), eps=EPS, steps=10, restarts=2, eot=1, generator=seeded())
    assert own >= max(alone) + 0.1
    assert nets.accuracy(model, walked) <= own - 0.05
    assert nets.accuracy(model, targeted(pair)) <= max(alone) + 0.05


def test_cross_max_behind_noise_falls_to_its_probes() -> None:
    """Fort and Lakshminarayanan 2024: the aggregate hides what the mean of the probes shows."""
    model = nets.cross_max()
    white = paper_pgd(model)
    assert nets.accuracy(model, white) >= 0.45
    assert nets.accuracy(model, targeted(nets.Probes(model), eot=4)) <= 0.25
    assert black_box_flags(model, white, transferred()) == ["black_box_beats_white_box"]


SHORT_LADDER = Budget(
    "short ladder",
    (
        Rung("targeted", (Move("targeted", 10, 4, "random", refine=20),)),
        Rung("black box", (Move("square", 300, 1), Move("transfer", 20, 4, "random"))),
    ),
)
"""First and last rung of the ladder, shortened."""


@pytest.mark.parametrize(
    ("build", "source", "looks", "falls"),
    [
        (nets.zero_gradient, nets.undefended, 0.85, 0.15),
        (nets.binarized, nets.undefended, 0.7, 0.05),
        (nets.k_winners, nets.undefended, 0.25, 0.15),
        (nets.empir, lambda: nets.empir().ensemble, 0.85, 0.15),
        (nets.cross_max, lambda: nets.Probes(nets.cross_max()), 0.45, 0.25),
    ],
    ids=["zero gradient", "binarized", "k winners", "EMPIR", "cross-max"],
)
def test_the_ladder_brings_them_down(
    build: Callable[[], nn.Module], source: Callable[[], AnyModel], looks: float, falls: float
) -> None:
    """The ladder is told nothing but what to transfer from: an undefended network, or the parts' mean."""
    model, (x, y) = build(), nets.images()
    found = climb(model, x, y, EPS, SHORT_LADDER, sources={"source": source()}, resubmissions=16)
    assert nets.accuracy(model, paper_pgd(model)) >= looks
    assert nets.accuracy(model, found.points[DEPLOYED]) <= falls


def test_the_ladder_brings_a_random_pair_down_to_its_members() -> None:
    model, (x, y) = nets.random_pair(), nets.images()
    pair = squint.Ensemble(list(model.members), draws=1).eval()
    found = climb(pair, x, y, EPS, SHORT_LADDER, sources={"undefended": nets.undefended()})
    alone = [nets.accuracy(member, paper_pgd(member)) for member in model.members]
    assert nets.accuracy(model, paper_pgd(model)) >= max(alone) + 0.1
    assert nets.accuracy(model, found.points[DEPLOYED]) <= max(alone) + 0.05


@pytest.mark.parametrize("build", [nets.undefended, nets.zero_gradient])
def test_the_dead_leave_no_trace(build: Callable[[], nn.Module]) -> None:
    model, before = build(), torch.get_rng_state()
    paper_pgd(model)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
