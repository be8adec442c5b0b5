"""PGD adversarial training: the bar that a method without adversarial examples is measured against.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR, arXiv:1706.06083:

    min_theta E max_{|d|_inf <= eps} CE(f(x + d), y)                       (equation 2.1)

From the paper, for CIFAR-10: 7 steps of 2/255 at 8/255 from a random start, training on the adversarial
images alone. Not from the paper: the radius is the study's unless it is set, and the step a quarter of it.
What departs: images are crafted in evaluation mode, so that the running statistics see each training batch
once (the paper crafts in training mode). Several members are attacked together, by their mean probability.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from squint._checks import parse_fraction
from squint._random import default_generator
from squint.baselines.fixed_pass import member_losses
from squint.baselines.inner_attack import adversarial_examples, radius
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import Objective


@dataclass(config=OPTIONS)
class AdversarialTraining(Rival):
    """Training on PGD's examples."""

    name: ClassVar[str] = "adversarial-training"
    own_loss: ClassVar[bool] = True
    eps: str | None = None
    """L-infinity radius of the training attack, a fraction; null: the study's."""
    steps: int = Field(default=7, ge=1)
    """Gradient steps of the training attack."""
    step_size: float | None = Field(default=None, gt=0)
    """Length of its steps; null: eps/4."""

    @field_validator("eps")
    @classmethod
    def _eps(cls, value: str | None) -> str | None:
        if value is not None:
            parse_fraction("eps", value)
        return value

    @property
    def tier(self) -> str:
        """C: it trains at points found by ascent."""
        return "C"

    def check(self, setup: Setup) -> None:
        """Raise `InputError` where the configuration has no radius to train at."""
        super().check(setup)
        radius(self.eps, setup.eps, self.name)

    def objective(self, setup: Setup) -> Objective:
        """Return the loss at adversarial images."""
        eps = radius(self.eps, setup.eps, self.name)

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            del step
            points = adversarial_examples(ens, x, y, eps=eps, steps=self.steps, step_size=self.step_size)
            logits = ens.member_logits(points, setup.training_draws, generator=default_generator())
            return {"adversarial_ce": member_losses(logits, y).mean()}

        return objective

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the passes of the attack's steps, one draw each, and of the loss."""
        return members * (self.steps + draws)
