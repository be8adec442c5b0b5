"""GAL: members whose input gradients point apart.

Kariyappa and Qureshi 2019, "Improving Adversarial Robustness of Ensembles with Diversity Training",
arXiv:1901.09981. With g_m the gradient of member m's loss by the image:

    alignment    GAL = log sum_{i<j} exp( cos(g_i, g_j) )
    loss         L = E CE + lambda E GAL

From the paper: lambda 1/2, two members or more. What departs: our networks keep their ReLU (the paper takes
leaky ones, so that fewer gradients vanish) and see no gaussian noise on training images; gradients are
taken at the training pass's batch statistics, held for the purpose (`FixedPass`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from squint.baselines.fixed_pass import FixedPass, input_gradients, member_losses, pair_cosines
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import Objective


def gradient_alignment(gradients: Tensor) -> Tensor:
    """Return the mean over the batch of GAL, of gradients (members, batch, n)."""
    return pair_cosines(gradients).logsumexp(0).mean()


@dataclass(config=OPTIONS)
class Gal(Rival):
    """A penalty on the alignment of the members' input gradients."""

    name: ClassVar[str] = "gal"
    own_loss: ClassVar[bool] = True
    least_members: ClassVar[int] = 2
    strength: float = Field(default=0.5, ge=0)
    """lambda: weight of the alignment."""

    @property
    def tier(self) -> str:
        """B: it penalises the input gradient's direction."""
        return "B"

    def objective(self, setup: Setup) -> Objective:
        """Return the members' mean loss with the penalty."""

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            del step
            x = x.detach().requires_grad_()
            fixed = FixedPass(ens, x.detach(), setup.training_draws)
            gradients = input_gradients(fixed.losses(x, y), x)
            return {
                "member_ce": member_losses(fixed.logits, y).mean(),
                "alignment": self.strength * gradient_alignment(gradients),
            }

        return objective

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return two passes, the second with a gradient of its gradient, which counts as one more."""
        return 3 * members * draws
