"""Elements of a gradient that are infinite or NaN stop no attack on the rest of the image."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from squint import attacks
from squint.attacks.adaptive import AdaptiveGradient
from squint.attacks.geometry import Ball
from squint.attacks.gradients import Units, made_finite, usable
from squint.attacks.objectives import objective
from squint.attacks.pgd import ascend
from squint.evaluation.gradient_flags import fidelity, unevenly_faithful, unfaithful, zero_gradients
from tests.attacks.models import NoisyLinear, interior_images
from tests.attacks.test_attacks import run

EPS = 0.05


class Spoiled(torch.autograd.Function):
    """Identity whose gradient is `value` at the first pixel of every image, or at all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float, throughout: bool = False) -> Tensor:
        ctx.value, ctx.throughout = value, throughout
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        slope = grads[0].clone()
        slope[... if ctx.throughout else (..., 0, 0, 0)] = ctx.value
        return slope, None, None


class Poisoned(nn.Module):
    """Two linear members behind a first pixel whose gradient is unusable; the logits are as without it."""

    def __init__(self, features: int, value: float) -> None:
        super().__init__()
        self.linear, self.value = NoisyLinear(2, features, 5, 0.0), value

    def member_logits(self, x: Tensor, draws: int = 1, **noise: Any) -> Tensor:
        return self.linear.member_logits(cast(Tensor, Spoiled.apply(x, self.value)), draws, **noise)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "apgd", "apgd_targeted", "targeted", "member_pgd", "mora", "arc", "transfer"]
)
def test_one_pixel_does_not_stop_an_attack(name: str, value: float, generator: torch.Generator) -> None:
    x, y = interior_images((4, 3, 4, 4), generator), torch.tensor([0, 1, 2, 3])
    model, pooled = Poisoned(x[0].numel(), value), objective("margin", y)

    def rise(attacked: nn.Module) -> Tensor:
        found = run(name, "linf", attacked, x, y, eps=EPS, generator=torch.Generator().manual_seed(1))
        before, after = (pooled(model.linear.member_logits(point, 1).double()) for point in (x, found))
        return (after - before).mean()

    assert rise(model) > 0.8 * rise(model.linear)


def test_infinity_is_the_largest_finite_element_and_nan_is_nothing() -> None:
    slope = torch.tensor([[1.0, -2.0, math.inf, math.nan], [0.0, -math.inf, 0.0, 0.0], [math.nan] * 4])
    assert made_finite(slope).tolist() == [[1.0, -2.0, 2.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0] * 4]
    sound, finite = usable(torch.tensor([1.0, math.inf, 1.0]), slope)
    assert sound.flatten().tolist() == [True, False, False]
    assert finite.tolist() == [[1.0, -2.0, 2.0, 0.0], [0.0] * 4, [0.0] * 4]


def test_momentum_does_not_lead_back_to_where_a_step_was_taken_back() -> None:
    x, met = torch.full((1, 4), 0.5), []

    def gradient(point: Tensor) -> tuple[Tensor, Tensor]:
        met.append(float(point[0, 0]))
        slope = torch.full_like(point, math.nan if point[0, 0] > 0.55 else 1.0, dtype=torch.float64)
        return torch.ones(1), slope

    found = ascend(gradient, Ball(x, 0.2), x, [0.04, 0.04, 0.04, 0.001], momentum=1.0)
    assert met == pytest.approx([0.5, 0.54, 0.58, 0.54])
    assert found.flatten().tolist() == pytest.approx([0.541] * 4)


def test_a_source_that_fails_on_an_image_does_not_stop_the_others(generator: torch.Generator) -> None:
    x, y = interior_images((4, 3, 4, 4), generator), torch.tensor([0, 1, 2, 3])
    good, pooled = NoisyLinear(1, x[0].numel(), 5, 0.0), objective("margin", y)

    class Failing(nn.Module):
        def member_logits(self, x: Tensor, draws: int = 1, **noise: Any) -> Tensor:
            spoiled = torch.tensor([True, False, True, False])[:, None]
            return good.member_logits(x, draws, **noise).masked_fill(spoiled, math.nan)

    found = attacks.transfer([good, Failing()], x, y, eps=EPS, steps=4, diversity=0.0, generator=generator)
    before, after = (pooled(good.member_logits(point, 1).double()) for point in (x, found))
    assert (after > before).all()


def test_a_step_on_which_every_source_fails_is_taken_back(generator: torch.Generator) -> None:
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])

    class Ending(nn.Module):
        """Has no gradient beyond 0.56 or below 0.44, on any image."""

        def member_logits(self, x: Tensor, draws: int = 1, **noise: Any) -> Tensor:
            far = (x - 0.5).abs().amax() > 0.06
            shown = cast(Tensor, Spoiled.apply(x, math.nan, True)) if far else x  # type: ignore[no-untyped-call]
            return NoisyLinear(1, 16, 5, 0.0).member_logits(shown, draws, **noise)

    options: dict[str, Any] = {"eps": 0.2, "steps": 5, "step_size": 0.05, "random_start": False}
    moved = attacks.transfer([Ending()], x, y, diversity=0.0, generator=generator, **options)
    assert float((moved - x).abs().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize("spoil", [False, True])
def test_draws_grow_although_one_pixel_is_unusable(spoil: bool, generator: torch.Generator) -> None:
    x, y = interior_images((4, 3, 4, 4), generator), torch.tensor([0, 1, 2, 3])
    noisy = NoisyLinear(1, x[0].numel(), 5, 4.0)

    class Shown(nn.Module):
        def member_logits(self, x: Tensor, draws: int = 1, **noise: Any) -> Tensor:
            shown = cast(Tensor, Spoiled.apply(x, math.inf)) if spoil else x  # type: ignore[no-untyped-call]
            return noisy.member_logits(shown**2, draws, **noise)

    adaptive = AdaptiveGradient(Units(Shown(), y, 4), lambda rows: objective("ce", y[rows]), 60)
    for seed in range(6):
        adaptive(x, seed)
    assert int(adaptive.draws.max()) > 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_checks_of_gradients_say_so(value: float, generator: torch.Generator) -> None:
    x, y = interior_images((20, 3, 4, 4), generator), torch.arange(20) % 5
    model = Poisoned(x[0].numel(), value)
    assert [finding.kind for finding in zero_gradients(model, x, y, seed=0)] == ["zero_gradients"]
    measured = fidelity(model, x, y, EPS, seed=0, draws=8)
    assert (measured.unseen, measured.images) == (1.0, 20)
    for finding in (unevenly_faithful(measured), unfaithful(replace(measured, actual=1.0, at_start=value))):
        assert finding is not None
        json.dumps(dict(finding.measured), allow_nan=False)
    honest = fidelity(model.linear, x, y, EPS, seed=0, draws=8)
    assert (honest.unseen, honest.overstated, honest.images) == (0.0, 0.0, 20)


def test_a_loss_that_stands_still_is_overstated_by_any_gradient(generator: torch.Generator) -> None:
    x, y = interior_images((20, 3, 4, 4), generator), torch.arange(20) % 5
    linear = NoisyLinear(1, x[0].numel(), 5, 0.0)

    class Still(nn.Module):
        """Half of the images are answered as if they were never changed, with the honest gradient."""

        def member_logits(self, point: Tensor, draws: int = 1, **noise: Any) -> Tensor:
            honest = linear.member_logits(point, draws, **noise)
            clean = linear.member_logits(x, draws, **noise)
            still = (torch.arange(len(x)) % 2 == 0)[:, None]
            return torch.where(still, clean + 0.3 * (honest - honest.detach()), honest)

    measured = fidelity(Still(), x, y, EPS, seed=0, draws=8)
    assert measured.overstated == 0.5
    finding = unevenly_faithful(measured)
    assert finding is not None
    assert finding.kind == "unfaithful_on_some"
