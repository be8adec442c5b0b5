"""CURE: a loss whose gradient changes little along its own sign.

Moosavi-Dezfooli, Fawzi, Uesato and Frossard 2019, "Robustness via Curvature Regularization, and Vice Versa",
CVPR, arXiv:1811.09716:

    loss = E CE + lambda E || grad l(x + h z) - grad l(x) ||_2^2,  z = sign(grad l(x))/|| sign(grad l(x)) ||_2

From the paper: lambda 4, h up to 1.5 on CIFAR-10 (L2, pixel units), rising over the first epochs. What
departs: training starts from fresh weights (the paper fine-tunes trained ones), so that h rises over the
first quarter of training; l is each example's own loss and the change is squared, as the formula says (its
published code takes the length of the batch's mean loss's gradient, a far smaller number); both gradients
are taken at the training pass's batch statistics (`FixedPass`; the paper: in evaluation mode). At its
published step the method looks at a point found by ascent at finite radius and is of tier C; up to a step of
0.1 it is a derivative, tier B.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from squint.baselines.fixed_pass import FixedPass, input_gradients, member_losses
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import Objective
from squint.training.config import DERIVATIVE
from squint.training.objective import ramp


def sign_direction(gradient: Tensor) -> Tensor:
    """Return sign(g)/||sign(g)||_2 of gradients (..., n); zero where the gradient vanishes."""
    signs = gradient.detach().sign()
    direction: Tensor = signs / signs.norm(dim=-1, keepdim=True).clamp_min(1)
    return direction


@dataclass(config=OPTIONS)
class Cure(Rival):
    """A penalty on the curvature of the loss along the gradient's sign."""

    name: ClassVar[str] = "cure"
    own_loss: ClassVar[bool] = True
    strength: float = Field(default=4.0, ge=0)
    """lambda: weight of the squared change of the gradient."""
    step: float = Field(default=1.5, gt=0)
    """h: length of the step along the sign of the gradient, in pixel units (L2)."""
    warmup: float = Field(default=0.25, ge=0, le=1)
    """Share of training over which the step rises to its length."""

    @property
    def tier(self) -> str:
        """C at the published step; B where the step is small enough to be a derivative."""
        return "C" if self.step > DERIVATIVE else "B"

    def objective(self, setup: Setup) -> Objective:
        """Return the loss, each member with its own direction."""

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            x = x.detach().requires_grad_()
            fixed = FixedPass(ens, x.detach(), setup.training_draws)
            here = input_gradients(fixed.losses(x, y), x)
            length = self.step * ramp(step + 1, setup.total_steps, self.warmup)
            changes = []
            for member, gradient in enumerate(here):
                moved = (x.detach() + length * sign_direction(gradient).view_as(x)).requires_grad_()
                there = input_gradients(fixed.losses_of(member, moved, y), moved)[0]
                changes.append((there - gradient).square().sum(-1).mean())
            return {
                "member_ce": member_losses(fixed.logits, y).mean(),
                "curvature": self.strength * sum(changes[1:], start=changes[0]) / len(changes),
            }

        return objective

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the training pass and two whose gradients are differentiated, which count twice."""
        return members * draws * (1 + 2 + 2)
