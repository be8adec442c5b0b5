"""Losses that an attack ascends, each a function of the logits of all units, a unit being a (draw, member).

Every function here maps logits (..., batch, classes), with at least one leading unit dimension, to (batch,),
and is larger where the attacker is better off. The unit dimensions are pooled **once**: the loss of the
deployed rule, never a mean of losses of means. The temperature divides the logits inside the mean, because
softmax(z / T) averaged over units is another function than the averaged probability tempered afterwards.
Call them in float64 (`Units.gradients` does): 1 − p_y rounds to zero below 6e-8 in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from squint._checks import InputError, check_choice, check_number

Objective = Callable[[Tensor], Tensor]
"""Logits (..., batch, classes) -> (batch,), to be ascended; or (rows, batch) for several losses at once."""

_LOG_HALF = -math.log(2)


def log_mean_probability(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return log p̄ (batch, classes), p̄ the mean over all units of softmax(logits / temperature)."""
    units = (logits / temperature).flatten(0, -3)
    return units.log_softmax(-1).logsumexp(0) - math.log(units.shape[0])


def cross_entropy(
    logits: Tensor, y: Tensor, *, targets: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Return −log p̄_y (batch,), or log p̄_t with targets; p̄ is the mean probability over all units.

    Where p̄_y is above one half the value is computed from 1 − p̄_y, so that a saturated network still has a
    gradient: in units of the other classes' probabilities, down to e^−700.
    """
    log_p = log_mean_probability(logits, temperature=temperature)
    if targets is not None:
        return _pick(log_p, targets)
    units = (logits / temperature).flatten(0, -3).log_softmax(-1)
    wrong = units.masked_fill(_one_hot(y, units), -math.inf).logsumexp(-1).logsumexp(0)
    wrong = wrong - math.log(units.shape[0])
    right = _pick(log_p, y)
    confident = -torch.log1p(-wrong.clamp(max=_LOG_HALF).exp())
    return torch.where(right < _LOG_HALF, -right, confident)


def mean_cross_entropy(
    logits: Tensor, y: Tensor, *, targets: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Return the mean over units of each unit's own cross-entropy (batch,), negated towards targets."""
    units = logits.flatten(0, -3)
    folded = units.reshape(1, -1, units.shape[-1])
    repeated = None if targets is None else targets.repeat(units.shape[0])
    each = cross_entropy(folded, y.repeat(units.shape[0]), targets=repeated, temperature=temperature)
    return each.view(units.shape[0], -1).mean(0)


def margin(logits: Tensor, y: Tensor, *, targets: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Return ℓ_c − ℓ_y (batch,), ℓ = log p̄ and c the likeliest wrong class or the target.

    Positive where the deployed rule errs. It does not saturate: its gradient keeps its size however confident
    the units are.
    """
    return _gap(log_mean_probability(logits, temperature=temperature), y, targets)


def mean_logits_margin(
    logits: Tensor, y: Tensor, *, targets: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Return z̄_c − z̄_y (batch,), z̄ the mean over units of the logits: no unit can hide behind another."""
    return _gap((logits / temperature).flatten(0, -3).mean(0), y, targets)


def dlr(logits: Tensor, y: Tensor, *, targets: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Return the difference-of-logits ratio on ℓ = log p̄ (batch,), after Croce and Hein 2020, equations 6, 7.

    Untargeted −(ℓ_y − max_{j≠y} ℓ_j)/(ℓ_π1 − ℓ_π3), targeted −(ℓ_y − ℓ_t)/(ℓ_π1 − ½(ℓ_π3 + ℓ_π4)), π sorting
    ℓ in descending order.

    Raises:
        InputError: with fewer than 3 classes, or 4 when targeted.
    """
    log_p = log_mean_probability(logits, temperature=temperature)
    needed = 3 if targets is None else 4
    if log_p.shape[-1] < needed:
        raise InputError(f"loss 'dlr' on {log_p.shape[-1]} classes; allowed: {needed} classes or more")
    ordered = log_p.sort(-1, descending=True).values
    third = ordered[:, 2] if targets is None else (ordered[:, 2] + ordered[:, 3]) / 2
    return _gap(log_p, y, targets) / (ordered[:, 0] - third + 1e-12)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "mean_ce": mean_cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "mean_logits_margin": mean_logits_margin,
}
"""The losses by the name that attacks take."""


def objective(loss: str, y: Tensor, *, targets: Tensor | None = None, temperature: float = 1.0) -> Objective:
    """Return the named loss as a function of logits alone.

    Args:
        loss: a key of `LOSSES`.
        y: true labels (batch,).
        targets: wrong classes (batch,) to be reached, or None for the untargeted form.
        temperature: divides the logits of each unit, above 0.

    Raises:
        InputError: for an unknown loss or a temperature that is not positive.
    """
    check_choice("loss", loss, LOSSES)
    check_number("temperature", temperature, 0.0, open_low=True)
    return partial(LOSSES[loss], y=y, targets=targets, temperature=temperature)


def _gap(scores: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
    if targets is not None:
        return _pick(scores, targets) - _pick(scores, y)
    best_wrong = scores.masked_fill(_one_hot(y, scores), -math.inf).amax(-1)
    return best_wrong - _pick(scores, y)


def _pick(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(-1, classes.long().unsqueeze(-1)).squeeze(-1)


def _one_hot(y: Tensor, like: Tensor) -> Tensor:
    """Return a boolean mask (batch, classes) that is true at each example's label."""
    return torch.arange(like.shape[-1], device=like.device) == y.unsqueeze(-1)
