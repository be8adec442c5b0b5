"""Consistency: training under gaussian noise on the image, with draws that agree.

Jeong and Shin 2020, "Consistency Regularization for Certified Robustness of Smoothed Classifiers", NeurIPS,
arXiv:2006.04062. With p_s the prediction under draw s of the noise and p the mean over draws:

    loss = E_s CE(p_s, y) + lambda E_s KL(p || p_s) + eta H(p)

From the paper: two draws, eta 1/2, sigma 0.25 with lambda 20 (as in its published commands). The prediction
averages noisy draws, as its smoothed classifier does. What departs: the mean probability over the deployed
draws decides, not a vote with a certificate.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from squint._random import default_generator
from squint.baselines.fixed_pass import member_losses
from squint.baselines.noisy_image import NoisyImageNetwork
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.training import Objective
from squint.training.terms import agreement


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the mean over members and batch of H(p), p the mean over draws of (draws, members, ...)."""
    entropy: Tensor = torch.special.entr(logits.softmax(-1).mean(0)).sum(-1)
    return entropy.mean()


@dataclass(config=OPTIONS)
class Consistency(Rival):
    """Noise on the image and a penalty on the disagreement of its draws."""

    name: ClassVar[str] = "consistency"
    own_loss: ClassVar[bool] = True
    own_layers: ClassVar[bool] = True
    least_draws: ClassVar[int] = 2
    sigma: float = Field(default=0.25, gt=0)
    """Standard deviation of the noise, in pixel units."""
    strength: float = Field(default=20.0, ge=0)
    """lambda: weight of the draws' divergence from their mean."""
    entropy: float = Field(default=0.5, ge=0)
    """eta: weight of the mean prediction's entropy."""

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network behind noise on its image."""
        del place
        return NoisyImageNetwork(network, self.plain(), self.sigma)

    def objective(self, setup: Setup) -> Objective:
        """Return the loss over the training draws."""

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            del step
            logits = ens.member_logits(x, setup.training_draws, generator=default_generator())
            return {
                "noisy_ce": member_losses(logits, y).mean(),
                "disagreement": self.strength * agreement(logits),
                "entropy": self.entropy * mean_entropy(logits),
            }

        return objective
