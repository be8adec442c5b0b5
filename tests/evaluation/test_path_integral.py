"""Path integrals of gradients beside the rises that they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from squint.attacks.gradients import Units
from squint.evaluation.path_integral import along, path_integral


class Quadratic(nn.Module):
    """Logits (n, 2): zero and the sum of squares of an image's elements; remembers the images."""

    draws_noise = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach())
        square = x.flatten(1).square().sum(1)
        return torch.stack([torch.zeros_like(square), square], 1)


def goal(logits: Tensor) -> Tensor:
    return logits.mean((0, 1))[:, 1]


def integral(model: Quadratic, seed: int, nodes: int = 4) -> tuple[Tensor, Tensor]:
    """Return the integrals of 50 steps from 0.2 to 0.8 in four elements, and their rise."""
    x, step = torch.full((50, 1, 2, 2), 0.2), torch.full((50, 1, 2, 2), 0.6)
    units = Units(model, torch.zeros(50, dtype=torch.int64), 1)
    rise = (x + step).flatten(1).square().sum(1) - x.flatten(1).square().sum(1)
    return path_integral(units, x, step, goal, seed, nodes=nodes), rise


def test_it_is_the_rise_up_to_the_chance_of_its_places() -> None:
    """Of a quadratic each node of n errs by 2·|step|²·(u - 1/2)/n², so that the mean is right to 1/n^1.5."""
    found, rise = integral(Quadratic(), seed=0)
    error = 2 * 4 * 0.36 / 12**0.5 / 4**1.5
    assert found.dtype == torch.float64
    assert float((found - rise).std()) == pytest.approx(error, rel=0.35)
    assert float((found - rise).mean()) == pytest.approx(0.0, abs=4 * error / 50**0.5)


def test_places_lie_one_in_each_part_and_differ_by_image_and_by_seed() -> None:
    asked = []
    for seed in (0, 1, 0):
        model = Quadratic()
        integral(model, seed)
        # Each node asks once; an image's elements all lie at one place of its step.
        asked.append(torch.stack([(x[:, 0, 0, 0] - 0.2) / 0.6 for x in model.asked]))
    first, second, again = asked
    assert first.shape == (4, 50)
    parts = torch.arange(4.0)[:, None] / 4
    assert bool(((first >= parts - 1e-6) & (first <= parts + 0.25 + 1e-6)).all())
    assert len(set((first - parts).flatten().tolist())) > 190
    assert bool((first != second).all())
    assert torch.equal(first, again)


def test_the_inner_product_is_that_of_each_image() -> None:
    slope = torch.arange(8.0, dtype=torch.float64).view(2, 1, 2, 2)
    assert along(slope, torch.ones(2, 1, 2, 2)).tolist() == [6.0, 22.0]
