"""Scores of disagreement and uncertainty, each a function of the logits of one deployment's units.

Every score maps logits (draws, members, batch, classes) to (batch,) in float64, is higher where an example
is more suspicious, looks at each example alone, and is differentiable unless its docstring says
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from squint.attacks.objectives import cross_entropy, log_mean_probability
from squint.information import predictive_information

Score = Callable[[Tensor], Tensor]

VOTE_SHARPNESS = 4.0
"""Factor on the logits of the softened votes that attacks climb."""


def total_information(logits: Tensor) -> Tensor:
    """Return the predictive information H(p̄) − mean H(p_s) in nats (Houlsby et al. 2011)."""
    return predictive_information(logits.double()).total


def across_members(logits: Tensor) -> Tensor:
    """Return the part of the predictive information that is across members; 0 for a single one."""
    return predictive_information(logits.double()).across_members


def across_draws(logits: Tensor) -> Tensor:
    """Return the part of the predictive information that is across draws; 0 for a single one."""
    return predictive_information(logits.double()).across_draws


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence of two members' draw-averaged predictions, over pairs.

    In [0, log 2] nats; for two members it equals `across_members`, for one it is 0.
    """
    members = logits.double().log_softmax(-1).logsumexp(0) - math.log(len(logits))
    count = len(members)
    if count == 1:
        return torch.zeros_like(members[0, :, 0])
    first, second = torch.triu_indices(count, count, offset=1, device=logits.device)
    pairs = torch.stack([members[first], members[second]]).flatten(1, 2)
    return predictive_information(pairs.unsqueeze(0)).across_members.view(len(first), -1).mean(0)


def vote_disagreement(logits: Tensor) -> Tensor:
    """Return the share of units, in [0, 1), that do not vote for the most voted class; it has no gradient."""
    votes = logits.flatten(0, 1).argmax(-1)
    counts = torch.nn.functional.one_hot(votes, logits.shape[-1]).double().mean(0)
    return 1 - counts.amax(-1)


def soft_vote_disagreement(logits: Tensor) -> Tensor:
    """Return `vote_disagreement` with each vote softened to softmax(4 z), for attacks to climb."""
    votes = (VOTE_SHARPNESS * logits.double()).softmax(-1).mean((0, 1))
    return 1 - votes.amax(-1)


def probability_variance(logits: Tensor) -> Tensor:
    """Return the variance over units, in [0, 1/4], of the predicted class's probability."""
    probabilities = logits.double().softmax(-1)
    predicted = probabilities.mean((0, 1)).argmax(-1)
    index = predicted.view(1, 1, -1, 1).expand(*probabilities.shape[:2], -1, 1)
    return probabilities.gather(-1, index).squeeze(-1).flatten(0, 1).var(0, correction=0)


def entropy(logits: Tensor) -> Tensor:
    """Return H(p̄) in nats."""
    log_p = log_mean_probability(logits.double())
    return -(log_p.exp() * log_p.clamp_min(-700.0)).sum(-1)


def maximum_probability(logits: Tensor) -> Tensor:
    """Return −log of the largest mean probability, which keeps its digits near probability 1."""
    logits = logits.double()
    return cross_entropy(logits, log_mean_probability(logits.detach()).argmax(-1))


SCORES: dict[str, Score] = {
    "predictive_information": total_information,
    "across_members": across_members,
    "across_draws": across_draws,
    "jensen_shannon": jensen_shannon,
    "vote_disagreement": vote_disagreement,
    "probability_variance": probability_variance,
    "entropy": entropy,
    "maximum_probability": maximum_probability,
}
"""Scores that need no fitting, by name."""

SURROGATES: dict[str, Score] = {"vote_disagreement": soft_vote_disagreement}
"""Smooth stand-ins for the scores that have no gradient."""
