"""Predictive mutual information of draws and members, the disagreement that detection scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError


@dataclass(frozen=True)
class PredictiveInformation:
    """Information in nats between an example's predicted class and which member or draw predicted it.

    Attributes:
        total: (batch,), H(p̄) − mean over draws and members of H(p_s); the sum of the other two.
        across_members: (batch,), H(p̄) − mean_m H(p̄_m).
        across_draws: (batch,), mean_m [H(p̄_m) − mean_s H(p_{m,s})].
    """

    total: Tensor
    across_members: Tensor
    across_draws: Tensor


def predictive_information(logits: Tensor) -> PredictiveInformation:
    """Return H(p̄) − mean H(p_s) for each example, and its split across members and across draws.

    Computed as mean KL(p_s ‖ p̄), which loses no digits where predictions are confident. Differentiable. Each
    part is in [0, log classes]. Bias: with S draws `across_draws` is too low, by about a share 1/S; it is 0
    for one draw, and `across_members` is 0 for one member, and takes up some of what few draws hide. Cost
    O(draws · members · batch · classes). Source: Houlsby et al. 2011; Gal et al. 2017.

    Args:
        logits: (draws, members, batch, classes) member logits, or log-probabilities, which are the same here.

    Raises:
        InputError: wrong shape, NaN, +infinity, or a row without a finite value.
    """
    if not isinstance(logits, Tensor):
        raise InputTypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    if logits.ndim != 4 or logits.numel() == 0 or not logits.is_floating_point():
        raise InputError(
            f"logits has shape {tuple(logits.shape)} and dtype {logits.dtype}; "
            "allowed: floating point (draws, members, batch, classes)"
        )
    if not bool((logits.detach().amax(-1).abs() < math.inf).all()):
        raise InputError("logits contains NaN, infinity or a row of −infinity; allowed: finite values")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    single = logits.log_softmax(-1)
    draws, members = single.shape[:2]
    member = single.logsumexp(0) - math.log(draws)
    mean = member.logsumexp(0) - math.log(members)
    across_members = _divergence(member, mean).mean(0)
    across_draws = _divergence(single, member).mean((0, 1))
    return PredictiveInformation(across_members + across_draws, across_members, across_draws)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p ‖ q) over the last dimension for log-probabilities; classes of probability 0 add 0."""
    finite_p = p.masked_fill(p == -math.inf, 0.0)
    finite_q = q.masked_fill(q == -math.inf, 0.0)
    return (p.exp() * (finite_p - finite_q)).sum(-1)
