from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from squint import attacks
from squint.attacks.apgd import checkpoints

Digits = tuple[nn.Module, Tensor, Tensor]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("eps", [0.08, 0.15])
def test_pgd_is_as_strong_as_an_independent_one(digits: Digits, eps: float) -> None:
    model, x, y = digits
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=20, random_start=True)(x, y)
    ours = attacks.pgd(model, x, y, eps=eps, generator=torch.Generator().manual_seed(0))
    assert accuracy(model, x, y) > 0.9
    assert accuracy(model, ours, y) <= accuracy(model, theirs, y) + 0.01


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.8)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_as_strong_as_an_independent_one(digits: Digits, norm: str, eps: float, loss: str) -> None:
    model, x, y = digits
    name = {"linf": "Linf", "l2": "L2"}[norm]
    theirs, ours = [], []
    for seed in (0, 1):
        with torch.random.fork_rng():
            other = torchattacks.APGD(model, norm=name, eps=eps, steps=50, loss=loss, seed=seed)
            theirs.append(accuracy(model, other(x, y), y))
        source = torch.Generator().manual_seed(seed)
        found = attacks.apgd(model, x, y, eps=eps, norm=norm, steps=50, loss=loss, generator=source)
        ours.append(accuracy(model, found, y))
    assert sum(ours) / 2 <= sum(theirs) / 2 + 0.01


def test_attacks_are_ordered_as_their_budgets_are(digits: Digits) -> None:
    model, x, y = digits
    seed = torch.Generator().manual_seed(2)
    fgsm = accuracy(model, attacks.fgsm(model, x, y, eps=0.08), y)
    pgd = accuracy(model, attacks.pgd(model, x, y, eps=0.08, generator=seed), y)
    strongest = accuracy(model, attacks.targeted(model, x, y, eps=0.08, eot=1, generator=seed), y)
    square = accuracy(model, attacks.square(model, x, y, eps=0.08, steps=300, generator=seed), y)
    noise = accuracy(model, attacks.random_noise(x, eps=0.08, generator=seed), y)
    # Points on 300 images: one image is a third of a point.
    assert strongest <= pgd + 0.01 <= fgsm + 0.02
    assert strongest <= square + 0.01
    assert square < noise


def test_transfer_carries_over_from_a_source(digits: Digits) -> None:
    model, x, y = digits
    generator = torch.Generator().manual_seed(3)
    found = attacks.transfer([model], x, y, eps=0.15, steps=20, generator=generator)
    assert accuracy(model, found, y) < 0.5 * accuracy(model, attacks.random_noise(x, eps=0.15), y)


def test_checkpoints_follow_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
