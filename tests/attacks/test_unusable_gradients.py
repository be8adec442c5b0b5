"""Elements of a gradient that are infinite or NaN stop no attack on the rest of the image."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from squint import attacks
from squint.attacks.geometry import Ball
from squint.attacks.gradients import made_finite, usable
from squint.attacks.objectives import objective
from squint.attacks.pgd import ascend
from squint.evaluation.gradient_flags import fidelity, unevenly_faithful, zero_gradients
from tests.attacks.models import NoisyLinear, interior_images
from tests.attacks.test_attacks import run

EPS = 0.05


class Spoiled(torch.autograd.Function):
    """Identity whose gradient is `value` at the first pixel of every image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        slope = grads[0].clone()
        slope[..., 0, 0, 0] = ctx.value
        return slope, None


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_checks_of_gradients_say_so(value: float, generator: torch.Generator) -> None:
    x, y = interior_images((20, 3, 4, 4), generator), torch.arange(20) % 5
    model = Poisoned(x[0].numel(), value)
    assert [finding.kind for finding in zero_gradients(model, x, y, seed=0)] == ["zero_gradients"]
    measured = fidelity(model, x, y, EPS, seed=0, draws=8)
    assert (measured.unseen, measured.images) == (1.0, 20)
    assert unevenly_faithful(measured) is not None
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
