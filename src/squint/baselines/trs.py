"""TRS: members whose input gradients are orthogonal and small.

Yang et al. 2021, "TRS: Transferability Reduced Ensemble via Promoting Gradient Diversity and Model
Smoothness", NeurIPS, arXiv:2104.00671. With g_m(x) the gradient of member m's loss by the image:

    L_sim     mean over pairs and the batch of | cos( g_i(x), g_j(x) ) |
    L_smooth  2 mean over members and the batch of || g_m(x') ||_2^2, x' = argmax of it within eps of x
    loss      sum_m CE + scale ( a L_sim + b L_smooth )

From the paper's implementation: a 2, scale 5; x' by 6 steps of eps/3 from a random start, for the second
half of the batch, the first half staying clean; eps rising from half its value over training. Not from the
paper: eps is the study's unless it is set (its own is 0.2 on MNIST), and b is 0.1. Its implementation has b
2, for the gradient of the batch's mean loss, whose square is 1/batch^2 of an example's own, which is taken
here; with 2 members no longer learn the digits. What departs: the loss is divided by M, as all losses of
squint are means over members; gradients are taken at the training pass's batch statistics (`FixedPass`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from squint._checks import parse_fraction
from squint._random import default_generator
from squint.attacks.geometry import Ball
from squint.attacks.pgd import ascend
from squint.baselines.fixed_pass import FixedPass, input_gradients, member_losses, pair_cosines
from squint.baselines.inner_attack import radius
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import Objective


def similarity(gradients: Tensor) -> Tensor:
    """Return the mean over pairs and batch of the cosine's magnitude, of gradients (members, batch, n)."""
    return pair_cosines(gradients).abs().mean()


def magnitudes(gradients: Tensor) -> Tensor:
    """Return 2 ||g||_2^2, mean over members, for each example (batch,), of gradients (members, batch, n)."""
    return 2 * gradients.square().sum(-1).mean(0)


def steepest_points(fixed: FixedPass, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Return points within eps of x where the members' gradients are long: ascent on `magnitudes`."""
    ball = Ball(x, eps)

    def gradient(point: Tensor) -> tuple[Tensor, Tensor]:
        leaf = point.detach().requires_grad_()
        size = magnitudes(input_gradients(fixed.losses(leaf, y), leaf))
        (slope,) = torch.autograd.grad(size.sum(), leaf)
        return size.detach(), slope

    return ascend(gradient, ball, ball.random_point(default_generator()), [eps / 3] * steps).detach()


@dataclass(config=OPTIONS)
class Trs(Rival):
    """Orthogonal gradients, and small ones around the image."""

    name: ClassVar[str] = "trs"
    own_loss: ClassVar[bool] = True
    least_members: ClassVar[int] = 2
    similarity: float = Field(default=2.0, ge=0)
    """a: weight of the gradients' alignment."""
    smoothness: float = Field(default=0.1, ge=0)
    """b: weight of the gradients' squared length."""
    scale: float = Field(default=5.0, ge=0)
    """Weight of both beside the members' losses."""
    adversarial: bool = True
    """Look for long gradients around half of the images; without, at the images themselves."""
    eps: str | None = None
    """L-infinity radius of that search at the end of training, a fraction; null: the study's."""
    steps: int = Field(default=6, ge=1)
    """Its gradient steps, of eps/3."""

    @field_validator("eps")
    @classmethod
    def _eps(cls, value: str | None) -> str | None:
        if value is not None:
            parse_fraction("eps", value)
        return value

    @property
    def tier(self) -> str:
        """C with the search around the images, B without."""
        return "C" if self.adversarial else "B"

    def check(self, setup: Setup) -> None:
        """Raise `InputError` where the configuration has no radius to search in."""
        super().check(setup)
        if self.adversarial:
            radius(self.eps, setup.eps, self.name)

    def objective(self, setup: Setup) -> Objective:
        """Return the loss, over M."""
        eps = radius(self.eps, setup.eps, self.name) if self.adversarial else 0.0

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            x = x.detach()
            fixed = FixedPass(ens, x, setup.training_draws)
            leaf = x.clone().requires_grad_()
            here = input_gradients(fixed.losses(leaf, y), leaf)
            lengths = magnitudes(here)
            if self.adversarial:
                half = len(x) // 2
                # Its growth is over with the first cycle of the training.
                reach = eps * (1 + min(step / max(setup.total_steps, 1), 1.0)) / 2
                far = steepest_points(fixed, x[half:], y[half:], reach, self.steps).requires_grad_()
                there = magnitudes(input_gradients(fixed.losses(far, y[half:]), far))
                lengths = torch.cat([lengths[:half], there])
            weight = self.scale / len(here)
            return {
                "member_ce": member_losses(fixed.logits, y).mean(),
                "similarity": weight * self.similarity * similarity(here),
                "smoothness": weight * self.smoothness * lengths.mean(),
            }

        return objective

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the training pass, the differentiated one, and on half the batch those of the search.

        A pass whose gradient is differentiated counts twice.
        """
        search = self.steps + 1 if self.adversarial else 0
        return members * draws * (3 + search)
