"""The ladder on an honest stochastic ensemble of small networks, trained in a second."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import squint
from squint import models
from squint.data.digits import digits
from squint.evaluation.budgets import tiny
from squint.evaluation.ladder import as_attack, climb
from squint.evaluation.scoring import Scores, score
from squint.evaluation.selection import DEPLOYED, SINGLE

EPS = 24 / 255


@pytest.fixture(scope="module")
def trained() -> tuple[squint.Ensemble, Tensor, Tensor]:
    splits = digits()
    squint.seed(0)
    members = []
    for index in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(index)
            net = models.small_cnn(num_classes=10, in_channels=1, width=4)
        members.append(squint.quantize(net, 4, 3, 2))
    ensemble = squint.Ensemble(members, draws=4)
    squint.fit(ensemble, splits.train, squint.TrainConfig(epochs=4, batch_size=64))
    x, y = splits.test.pair()
    return ensemble.eval(), x[:16], y[:16]


def scored(model: squint.Ensemble, x: Tensor, y: Tensor, name: str) -> Scores:
    return score(model, x, y, draws=4, resubmissions=64, seed=7, keys=(name,))


def test_the_ladder_is_no_weaker_than_the_seed_protocol(
    trained: tuple[squint.Ensemble, Tensor, Tensor],
) -> None:
    model, x, y = trained
    clean = scored(model, x, y, "clean").accuracy
    generator = torch.Generator().manual_seed(0)
    seed = squint.attacks.pgd(model, x, y, eps=EPS, steps=20, generator=generator)
    found = climb(model, x, y, EPS, tiny(steps=10, eot=4))
    worst = scored(model, found.points[DEPLOYED], y, "worst")
    # 64 resubmissions of 16 images put a standard error of at most 1/64 on an accuracy.
    assert worst.accuracy <= scored(model, seed, y, "seed").accuracy + 3 / 64
    assert worst.accuracy < clean - 0.2, "digits at 24/255 do not survive"
    single = scored(model, found.points[SINGLE], y, "single")
    assert single.single_draw_accuracy <= worst.single_draw_accuracy + 3 / 64
    assert all(not run.skipped for run in found.rungs)


def test_the_climb_serves_as_an_attack(trained: tuple[squint.Ensemble, Tensor, Tensor]) -> None:
    model, x, y = trained
    run = as_attack(tiny(steps=2))
    first, again = (run(model, x[:4], y[:4], EPS, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert float((first - x[:4]).abs().max()) <= EPS + 1e-6
