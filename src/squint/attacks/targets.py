"""Which wrong classes are worth aiming at."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from squint import _random
from squint.attacks.gradients import Units
from squint.attacks.objectives import log_mean_probability


def likely_targets(units: Units, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return (targets, batch) wrong classes in descending order of log p̄ at x.

    Args:
        units: the model, with its labels.
        x: images (batch, ...).
        count: how many; never more than there are wrong classes.
        generator: source of the noise.
    """
    log_p = log_mean_probability(units.logits(x, _random.next_seed(generator)).double())
    wrong = log_p.scatter(-1, units.y.long().unsqueeze(-1), -math.inf)
    return wrong.topk(min(count, log_p.shape[-1] - 1), dim=-1).indices.T
