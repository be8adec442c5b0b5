"""The objective: which terms a step computes, with which weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from squint import _ranks
from squint._checks import InputError, InputTypeError
from squint._random import default_generator
from squint.training import smoothness, terms
from squint.training.config import ObjectiveConfig

Objective = Callable[[Any, Tensor, Tensor, int], dict[str, Tensor]]
"""objective(ens, x, y, step) -> named scalar terms; `fit` minimises their sum and logs each."""


def ramp(step: int, total: int, warmup: float) -> float:
    """Return how much of a coefficient holds at `step`: a straight rise over the first `warmup` share."""
    length = warmup * total
    return 1.0 if length == 0 else min(1.0, step / length)


class EnsembleObjective:
    """The training loss of squint's own ensembles, with warm-ups; terms of weight zero cost nothing.

    Args:
        config: the coefficients.
        draws: noise samples per member and step.
        total_steps: length of the training, or of its first cycle: of it the warm-ups are a share.

    Raises:
        squint.InputError: agreement with a single draw.
    """

    def __init__(self, config: ObjectiveConfig, draws: int, total_steps: int) -> None:
        if config.agreement > 0 and draws < 2:
            raise InputError(
                f"objective.agreement is {config.agreement:g} with draws 1; allowed: draws of 2 or more"
            )
        self.config = config
        self.draws = draws
        self.total_steps = total_steps

    def __call__(self, ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        """Return the weighted terms for a batch of images in [0, 1] and their labels."""
        c = self.config
        information = ramp(step, self.total_steps, c.information_warmup)
        weights = {
            "redundancy": c.redundancy * information,
            "conditional_redundancy": c.conditional_redundancy * information,
            "agreement": c.agreement * ramp(step, self.total_steps, c.agreement_warmup),
            "smoothness": c.smoothness * ramp(step, self.total_steps, c.smoothness_warmup),
        }
        logits, features, smooth = self._forward(ens, x, y, weights["smoothness"] > 0)
        informed = weights["redundancy"] != 0 or weights["conditional_redundancy"] != 0
        if informed and logits.shape[1] > 1:
            # Information is a matter of the whole batch, of which every process holds a part.
            features, labels = [_ranks.joined(z) for z in features], _ranks.joined(y)
        several = logits.shape[1] > 1
        out = {"member_ce": terms.member_cross_entropy(logits, y, c.label_smoothing)}
        if c.ensemble > 0:
            out["ensemble_ce"] = c.ensemble * terms.ensemble_cross_entropy(logits, y)
        if several and weights["redundancy"] != 0:
            out["redundancy"] = weights["redundancy"] * terms.redundancy(features)
        if several and weights["conditional_redundancy"] != 0:
            term = terms.conditional_redundancy(features, labels)
            out["conditional_redundancy"] = weights["conditional_redundancy"] * term
        if weights["agreement"] > 0:
            out["agreement"] = weights["agreement"] * terms.agreement(logits)
        if smooth is not None:
            out["smoothness"] = weights["smoothness"] * smooth
        return out

    def _forward(
        self, ens: Any, x: Tensor, y: Tensor, smooth: bool
    ) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:
        generator = default_generator()
        if not smooth:
            return (*ens.logits_and_features(x, self.draws, generator=generator), None)
        state = generator.get_state()
        statistics = smoothness.BatchStatistics(ens)
        with statistics.record():
            logits, features = ens.logits_and_features(x, self.draws, generator=generator)
        after = generator.get_state()

        def replayed(points: Tensor) -> Tensor:
            # The same seeds give the same noise.
            generator.set_state(state)
            with statistics.replay():
                return _per_example(ens.member_logits(points, self.draws, generator=generator), y)

        x = x.detach().requires_grad_()
        base = replayed(x)
        kind, h = self.config.smoothness_kind, self.config.smoothness_step
        (gradient,) = torch.autograd.grad(
            base.sum(), x, create_graph=kind != "finite_difference", retain_graph=True
        )
        if kind == "finite_difference":
            term = smoothness.finite_difference(replayed, x, base, gradient, h)
        elif kind == "curvature":
            term = smoothness.curvature(replayed, x, gradient, h)
        else:
            term = smoothness.squared_gradient(gradient)
        generator.set_state(after)
        return logits, features, term


def _per_example(logits: Tensor, y: Tensor) -> Tensor:
    """Return each example's mean cross-entropy over draws and members, shape (batch,)."""
    draws, members, batch, classes = logits.shape
    labels = y.expand(draws, members, batch).reshape(-1)
    losses = F.cross_entropy(logits.reshape(-1, classes), labels, reduction="none")
    return losses.view(draws * members, batch).mean(0)


def summed(terms: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
    """Return the sum of an objective's terms, and each value; read from the device once."""
    named = isinstance(terms, Mapping) and bool(terms)
    if not named or not all(isinstance(term, Tensor) and term.numel() == 1 for term in terms.values()):
        raise InputTypeError("the objective must return a dict of named terms, each a tensor of one number")
    stacked = torch.stack([term.float().reshape(()) for term in terms.values()])
    if not stacked.requires_grad:
        raise InputError("the objective's terms do not depend on the weights")
    # Means over processes: what is not finite in one of them stops all of them.
    values = dict(zip(terms, _ranks.mean(stacked).tolist(), strict=True))
    if not all(math.isfinite(value) for value in values.values()):
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise InputError(f"the loss is not finite at step {step} ({shown}); lower train.learning_rate")
    return stacked.sum(), values
