"""Input-gradient regularisation: a loss that changes little with the image.

Ross and Doshi-Velez 2018, "Improving the Adversarial Robustness and Interpretability of Deep Neural
Networks by Regularizing their Input Gradients", AAAI, arXiv:1711.09404 (Drucker and Le Cun 1992 before
them):

    loss = E CE(f(x), y) + lambda E || d CE(f(x), y)/dx ||_2^2

by double back-propagation; `kind: finite_difference` takes Finlay and Oberman 2021 (arXiv:1905.11468)
instead: [(l(x + h d) - l(x))/h]^2 with d the gradient at length 1. Both are squint's own smoothness term
and stand here as a rival by themselves. From the paper: the penalty. Not from the paper: lambda, which it
chooses per data set, and the warm-up over the first fifth of training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from squint._checks import InputError
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import EnsembleObjective, Objective, ObjectiveConfig


@dataclass(config=OPTIONS)
class GradientRegularisation(Rival):
    """A penalty on the squared norm of the input gradient, beside whatever the system's loss is."""

    name: ClassVar[str] = "gradient-regularisation"
    strength: float = Field(default=1.0, gt=0)
    """lambda: weight of the squared gradient."""
    kind: Literal["double_backward", "finite_difference"] = "double_backward"
    """How the gradient is measured."""
    step: float = Field(default=0.01, gt=0)
    """h: length of the finite difference, in pixel units (L2)."""
    warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of training over which the strength rises from zero."""

    @property
    def tier(self) -> str:
        """B: it penalises the input gradient; C where its finite difference is too long for a derivative."""
        return self._penalty(ObjectiveConfig()).tier

    def check(self, setup: Setup) -> None:
        """Raise `InputError` where the system's own loss has a smoothness term too."""
        super().check(setup)
        if setup.objective.smoothness > 0:
            raise InputError(
                f"objective.smoothness is {setup.objective.smoothness:g}; rival {self.name} allowed: 0, "
                "because it is the same term"
            )

    def objective(self, setup: Setup) -> Objective:
        """Return the system's loss with the penalty."""
        return EnsembleObjective(self._penalty(setup.objective), setup.training_draws, setup.total_steps)

    def _penalty(self, objective: ObjectiveConfig) -> ObjectiveConfig:
        return replace(
            objective,
            smoothness=self.strength,
            smoothness_kind=self.kind,
            smoothness_step=self.step,
            smoothness_warmup=self.warmup,
        )

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the training pass, the one that is differentiated and the moved one or second gradient."""
        return 3 * members * draws
