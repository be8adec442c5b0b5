"""ADP: members whose wrong answers differ.

Pang, Xu, Du, Chen and Zhu 2019, "Improving Adversarial Robustness via Promoting Ensemble Diversity", ICML,
arXiv:1901.08846. With p_m the members' probabilities, p~_m the same without the true class, at length 1:

    diversity    ED = det( P^T P ), P the columns p~_1 .. p~_M: the squared volume that they span
    regulariser  ADP = alpha H(mean_m p_m) + beta log ED
    loss         sum_m CE(p_m, y) - ADP

From the paper: alpha 2, beta 1/2, three members. From its implementations: 1e-6 on the diagonal before the
determinant. What departs: the loss is divided by M, as all losses of squint are means over members; with
several draws p_m is their mean.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from squint._random import default_generator
from squint.baselines.fixed_pass import member_losses
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import Objective

_DIAGONAL = 1e-6


def ensemble_entropy(probabilities: Tensor) -> Tensor:
    """Return the mean over the batch of H(mean_m p_m), in nats, of (members, batch, classes)."""
    mean = probabilities.mean(0)
    entropy: Tensor = torch.special.entr(mean).sum(-1)
    return entropy.mean()


def log_diversity(probabilities: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the batch of log ED of probabilities (members, batch, classes)."""
    members, batch, classes = probabilities.shape
    wrong = torch.ones(batch, classes, dtype=torch.bool, device=y.device).scatter(1, y[:, None], False)
    others = probabilities.transpose(0, 1)[wrong[:, None].expand(-1, members, -1)]
    directions = F.normalize(others.view(batch, members, classes - 1), dim=-1)
    # Products and sums stay in float32 where mixed precision would take a matrix product to half of it.
    gram = (directions[:, :, None] * directions[:, None]).sum(-1)
    identity = torch.eye(members, dtype=gram.dtype, device=gram.device)
    return torch.logdet(gram + _DIAGONAL * identity).mean()


@dataclass(config=OPTIONS)
class Adp(Rival):
    """Entropy of the mean prediction and diversity of the wrong classes."""

    name: ClassVar[str] = "adp"
    own_loss: ClassVar[bool] = True
    least_members: ClassVar[int] = 2
    alpha: float = Field(default=2.0, ge=0)
    """Weight of the mean prediction's entropy."""
    beta: float = Field(default=0.5, ge=0)
    """Weight of the logarithm of the diversity."""

    def objective(self, setup: Setup) -> Objective:
        """Return the loss, over M."""

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            del step
            logits = ens.member_logits(x, setup.training_draws, generator=default_generator())
            members = logits.shape[1]
            wide = logits if logits.dtype == torch.float64 else logits.float()
            probabilities = wide.softmax(-1).mean(0)
            return {
                "member_ce": member_losses(logits, y).mean(),
                "entropy": -self.alpha / members * ensemble_entropy(probabilities),
                "diversity": -self.beta / members * log_diversity(probabilities, y),
            }

        return objective
