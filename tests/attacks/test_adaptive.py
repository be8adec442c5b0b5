"""The number of draws grows where the noise is large, stays where it is small, and changes no expectation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from squint import attacks
from squint._checks import InputError
from squint.attacks.adaptive import MOST_DRAWS, AdaptiveGradient
from squint.attacks.gradients import Units
from squint.attacks.objectives import Objective, margin, objective
from tests.attacks.models import NoisyLinear, interior_images

FEATURES = 16


class PatchyNoise(NoisyLinear):
    """Noise in images of mean above one half, none in the others; squared, so that it moves gradients."""

    def _noisy(self, x: Tensor, weight: Tensor) -> Tensor:
        loud = (x.flatten(1).mean(1, keepdim=True) > 0.5).to(x)
        noisy = super()._noisy(x, weight)
        quiet = x.flatten(1) @ weight.T
        return (loud * noisy + (1 - loud) * quiet).square()


def case(scale: float) -> tuple[NoisyLinear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    model = PatchyNoise(1, FEATURES, 3, scale)
    x = 0.1 * torch.rand(6, 1, 4, 4, generator=generator)
    x[3:] += 0.8
    with torch.no_grad():
        y = (x.flatten(1) @ model.weight[0].T).square().argmax(-1)
    return model, x, y


def goal_of(y: Tensor) -> Callable[[Tensor], Objective]:
    return lambda rows: objective("margin", y[rows])


@pytest.mark.parametrize(("scale", "grows"), [(1e-4, False), (20.0, True)])
def test_draws_double_where_the_halves_disagree_and_nowhere_else(scale: float, grows: bool) -> None:
    model, x, y = case(scale)
    adaptive = AdaptiveGradient(Units(model, y, 4), goal_of(y), steps=20)
    adaptive(x, 0)
    # At scale 20 the three loud gradients are all but noise in one or two of their 4 draws, yet one of them
    # may agree by chance: after several steps none stays at 4.
    for seed in range(1, 8):
        adaptive(x, seed)
    assert adaptive.draws[:3].tolist() == [4, 4, 4]
    assert bool((adaptive.draws[3:] > 4).all()) is grows
    assert grows or adaptive.draws[3:].tolist() == [4, 4, 4]


def test_draws_stop_at_sixty_four_and_the_last_tenth_takes_twice_as_many() -> None:
    model, x, y = case(20.0)
    adaptive = AdaptiveGradient(Units(model, y, 32), goal_of(y), steps=10)
    spent = []
    for seed in range(10):
        model.units.clear()
        adaptive(x, seed)
        spent.append(set(model.units))
    # The quiet examples keep 32 draws until the last step, which takes 64 for them as for the others.
    assert spent[0] == {32}
    assert all(each <= {32, MOST_DRAWS} and 32 in each for each in spent[:9])
    assert spent[9] == {MOST_DRAWS}
    assert adaptive.draws[:3].tolist() == [32, 32, 32]


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_sum_of_the_halves_is_the_pooled_gradient(chunk: int | None) -> None:
    model, x, y = case(0.3)
    units = Units(model, y, 6, chunk=chunk)
    losses, slopes = AdaptiveGradient(units, goal_of(y), steps=5)(x, 7)
    expected, whole = units.gradient(x, partial(margin, y=y), 7)
    # The halves are float32 gradients that are summed: a few ulp of the largest element.
    assert torch.allclose(losses, expected, rtol=1e-12)
    assert torch.allclose(slopes, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


def test_pgd_with_adaptive_draws_finds_the_optimum_of_a_linear_model(generator: torch.Generator) -> None:
    model = NoisyLinear(1, FEATURES, 2, 0.5)
    x, y = interior_images((6, 1, 4, 4), generator), torch.tensor([0, 1, 0, 1, 0, 1])
    found = attacks.pgd(
        model, x, y, eps=0.1, eot=2, loss="margin", adaptive_eot=True, restarts=2, generator=generator
    )
    w = (model.weight[0, 1] - model.weight[0, 0]).detach()
    best = x + 0.1 * (1 - 2 * y.view(-1, 1, 1, 1)) * w.sign().view(1, 1, 4, 4)
    assert torch.allclose(found, best, atol=1e-6)


def test_a_targeted_run_carries_its_targets(generator: torch.Generator) -> None:
    model, x, y = case(20.0)
    targets = (y + 1) % 3
    found = attacks.pgd(
        model, x, y, eps=0.05, eot=2, steps=5, targets=targets, adaptive_eot=True, generator=generator
    )
    assert (found - x).abs().max() <= 0.05 + 1e-6


def test_one_draw_cannot_be_halved(generator: torch.Generator) -> None:
    model, x, y = case(0.1)
    with pytest.raises(InputError, match="eot is 1 with adaptive_eot; allowed: 2 or more"):
        attacks.pgd(model, x, y, eps=0.1, adaptive_eot=True, generator=generator)
