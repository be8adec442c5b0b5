"""The terms of the training loss, one small function each.

`logits` are (draws, members, batch, classes) everywhere; every term is a scalar in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from squint import information
from squint._checks import InputError


def member_cross_entropy(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return (1/M) sum_m E_draws[CE(p_m, y)], the mean of every member's own loss."""
    draws, members, batch, classes = logits.shape
    labels = y.expand(draws, members, batch).reshape(-1)
    return F.cross_entropy(logits.reshape(-1, classes), labels, label_smoothing=label_smoothing)


def ensemble_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return CE(p_bar, y), p_bar the mean probability over members and draws."""
    log_probability = logits.flatten(0, 1).log_softmax(-1)
    mean = torch.logsumexp(log_probability, 0) - math.log(log_probability.shape[0])
    return F.nll_loss(mean, y)


def agreement(logits: Tensor) -> Tensor:
    """Return mean_{m,s} KL(p_bar_m || p_{m,s}): how far draws lie from their member's mean (not detached).

    Raises:
        squint.InputError: a single draw, which has nothing to agree with.
    """
    if logits.shape[0] < 2:
        raise InputError("agreement between draws needs train.draws of 2 or more; got 1")
    log_p = logits.log_softmax(-1)
    log_mean = torch.logsumexp(log_p, 0) - math.log(logits.shape[0])
    return (log_mean.exp() * (log_mean - log_p)).sum(-1).mean()


def redundancy(features: Sequence[Tensor]) -> Tensor:
    """Return sum_{i<j} I_2(Z_i; Z_j) of L2-normalised features [(batch, features_m)]."""
    with torch.autocast(features[0].device.type, enabled=False):
        return information.redundancy(_on_sphere(features))


def conditional_redundancy(features: Sequence[Tensor], y: Tensor) -> Tensor:
    """Return sum_{i<j} I_2(Z_i; Z_j | Y) of L2-normalised features [(batch, features_m)]."""
    with torch.autocast(features[0].device.type, enabled=False):
        return information.conditional_redundancy(_on_sphere(features), y)


def _on_sphere(features: Sequence[Tensor]) -> list[Tensor]:
    """Return the features at length 1, in float32 or wider: information is lost to half precision."""
    return [F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1) for z in features]
