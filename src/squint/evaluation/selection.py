"""Which candidate is kept: scored on common noise of the selection stream, rule by rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from squint._checks import HasMemberLogits, check_logits
from squint._random import noise
from squint.attacks.geometry import per_example
from squint.attacks.gradients import AnyModel
from squint.evaluation.scoring import pooled

DEPLOYED, SINGLE = "deployed", "single"
SOFTNESS = 0.1
"""Margins closer to zero than about this count as partly lost when candidates are compared."""
_DRAWS_AT_ONCE = 64
_LARGEST = 1e300


@torch.no_grad()
def rule_margins(
    model: AnyModel, x: Tensor, y: Tensor, *, draws: int, resubmissions: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return margins ℓ_y − max ℓ_j of fresh submissions under each scoring rule, float64, below 0 for errors.

    Args:
        model: what is scored, in evaluation mode.
        x: images (batch, ...).
        y: labels (batch,).
        draws: draws S per deployment.
        resubmissions: deployments R.
        generator: source of the noise; the same state and batch shape give every candidate the same noise.

    Returns:
        "deployed": (R, batch), ℓ the log mean probability over members and S draws; "single": (R S, batch), ℓ
        of one draw. A model without `member_logits` is called R times and both rules are the same.
    """
    if not isinstance(model, HasMemberLogits):
        rows = []
        with noise(generator):
            for _ in range(resubmissions):
                logits = model(x)
                check_logits(logits, len(x))
                # An output of +inf wins, as where it is scored; its logarithm would be NaN.
                bounded = logits.double().clamp_max(_LARGEST)
                rows.append(margins(bounded.log_softmax(-1), y))
        each = torch.stack(rows)
        return {DEPLOYED: each, SINGLE: each}
    deployed, single = [], []
    at_once = max(1, _DRAWS_AT_ONCE // draws)
    for first in range(0, resubmissions, at_once):
        count = min(at_once, resubmissions - first)
        units = model.member_logits(x, count * draws, generator=generator).double().log_softmax(-1)
        log_p = _log_pooled(model, units)
        single.append(margins(log_p, y))
        grouped = log_p.reshape(count, draws, *log_p.shape[1:]).logsumexp(1) - math.log(draws)
        deployed.append(margins(grouped, y))
    return {DEPLOYED: torch.cat(deployed), SINGLE: torch.cat(single)}


def _log_pooled(model: HasMemberLogits, units: Tensor) -> Tensor:
    """Return log probabilities (draws, members, batch, classes) pooled over members as the model deploys."""
    if hasattr(model, "pool_members"):
        return pooled(model, units.exp()).log()
    return units.logsumexp(1) - math.log(units.shape[1])


def margins(log_p: Tensor, y: Tensor) -> Tensor:
    """Return ℓ_y − max_{j≠y} ℓ_j (..., batch) of (..., batch, classes); a NaN counts as an error."""
    place = y.expand(log_p.shape[:-1]).unsqueeze(-1)
    right = log_p.gather(-1, place).squeeze(-1)
    wrong = log_p.scatter(-1, place, -math.inf).amax(-1)
    return (right - wrong).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def selection_margin(each: Tensor) -> Tensor:
    """Return one figure per image (batch,) by which candidates are compared; the attacker wants it small.

    −τ log mean_r σ(−m_r/τ) over submissions r, τ = `SOFTNESS`: with sharp σ it is the share of submissions
    that err, on a scale that goes on falling with the margin where none does yet. Never negative.
    """
    share = torch.nn.functional.logsigmoid(-each / SOFTNESS).logsumexp(0) - math.log(len(each))
    return -SOFTNESS * share


def error_share(each: Tensor) -> Tensor:
    """Return the share of submissions that err (batch,)."""
    return (each < 0).double().mean(0)


class Kept:
    """The best point of each image under one scoring rule, on the present bank of noise.

    Attributes:
        point: images (batch, ...).
        margin: their selection margin (batch,).
        errors: their share of submissions that err (batch,).
    """

    def __init__(self, point: Tensor, each: Tensor) -> None:
        self.point = point
        self.margin, self.errors = selection_margin(each), error_share(each)

    def offer(self, candidate: Tensor, each: Tensor) -> None:
        """Keep the candidate where its selection margin, on the same bank, is smaller."""
        margin = selection_margin(each)
        better = margin < self.margin
        self.point = torch.where(per_example(better, candidate), candidate, self.point)
        self.margin = torch.where(better, margin, self.margin)
        self.errors = torch.where(better, error_share(each), self.errors)
