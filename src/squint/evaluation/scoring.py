"""Scoring rules: how often fresh deployments of a randomised model err on given images.

A deployment (one resubmission) averages S fresh draws. Each image is submitted R times; e of them err.
Nothing is thresholded: accuracy is the mean over images of 1 - e/R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, InputError, check_labels, check_logits
from squint._random import derive_generator, noise
from squint.attacks.gradients import AnyModel, Units
from squint.ensemble import Ensemble, draws_own_noise, says_still, varies

RESUBMISSIONS = 64
_DRAWS_AT_ONCE = 64
_STILL = 1e-3
"""Two calls of a model without noise may differ by this share of its largest logit, as sums on a GPU do."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Outcomes of fresh deployments, per image.

    Attributes:
        errors: resubmissions that erred (n,), whole numbers.
        resubmissions: how many there were.
        single_errors: share of single draws that erred (n,).
        draws: draws S per deployment.
        random: whether two deployments can differ; one that cannot is asked once.
        nan: resubmissions whose output held a NaN (n,), which are errors too; None: not counted.
    """

    errors: Tensor
    resubmissions: int
    single_errors: Tensor
    draws: int
    random: bool = True
    nan: Tensor | None = None

    @property
    def correct(self) -> Tensor:
        """Each image's share of correct deployments, float64 (n,)."""
        return 1 - self.errors.double() / self.resubmissions

    @property
    def accuracy(self) -> float:
        """Accuracy under the deployed rule."""
        return float(self.correct.mean())

    @property
    def single_draw_accuracy(self) -> float:
        """Accuracy of one draw of all members."""
        return float(1 - self.single_errors.double().mean())

    def persistent_accuracy(self, tries: int) -> float | None:
        """Return the accuracy against an attacker who submits each image `tries` times; None below R = 4q.

        One try is the deployed rule itself and needs no more than R = 1. The unbiased estimate
        C(R - e, q)/C(R, q) of the chance that no submission errs; a model without noise answers every
        submission alike.
        """
        if not self.random:
            return self.accuracy
        if tries > 1 and self.resubmissions < 4 * tries:
            return None
        total = math.comb(self.resubmissions, tries)
        survives = [math.comb(self.resubmissions - int(e), tries) / total for e in self.errors.tolist()]
        return sum(survives) / len(survives)


def is_random(model: AnyModel) -> bool:
    """Return whether two calls of the model can differ in evaluation mode.

    Only modules made of torch's and squint's own parts can be known to be still; everything else is taken to
    be random, unless its class says `draws_noise = False`. That is checked where the model is scored.
    """
    if isinstance(model, Ensemble):
        return any(varies(member) for member in model.members)
    return not isinstance(model, nn.Module) or varies(model)


def deployed_draws(model: AnyModel) -> int:
    """Return how many draws one prediction averages: the model's own `draws`; 1 without `member_logits`."""
    draws = getattr(model, "draws", 1) if isinstance(model, HasMemberLogits) else 1
    return draws if isinstance(draws, int) else 1


@torch.no_grad()
def score(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    draws: int,
    resubmissions: int,
    seed: int,
    keys: tuple[object, ...],
) -> Scores:
    """Return the outcomes of `resubmissions` fresh deployments of the model on every image.

    Args:
        model: what is scored, in evaluation mode; without `member_logits` a deployment is one call.
        x: images (batch, ...).
        y: labels (batch,).
        draws: draws S per deployment.
        resubmissions: deployments R; a model without noise is asked once.
        seed: base of the score stream.
        keys: what else the stream depends on (system, attack, eps, chunk).

    Raises:
        squint.InputError: the model says that it draws no noise, and two calls differ.
    """
    generator = derive_generator(seed, "score", *keys)
    random = is_random(model)
    if not random:
        resubmissions, draws = 1, 1
    _check_still(model, x, y)
    if not isinstance(model, HasMemberLogits):
        wrong = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        nan = torch.zeros_like(wrong)
        with noise(generator):
            for _ in range(resubmissions):
                logits = model(x)
                _check(logits, y)
                wrong += errors_of(logits, y)
                nan += logits.isnan().any(-1)
        return Scores(wrong.cpu(), resubmissions, wrong.cpu() / resubmissions, 1, random, nan.cpu())
    errors = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    single, nan = torch.zeros_like(errors), torch.zeros_like(errors)
    at_once = max(1, _DRAWS_AT_ONCE // draws)
    for first in range(0, resubmissions, at_once):
        count = min(at_once, resubmissions - first)
        logits = model.member_logits(x, count * draws, generator=generator)
        _check(logits[0, 0], y)
        probabilities = pooled(model, logits.double().softmax(-1))
        single += errors_of(probabilities, y).sum(0)
        deployed = probabilities.view(count, draws, *probabilities.shape[1:]).mean(1)
        errors += errors_of(deployed, y).sum(0)
        nan += deployed.isnan().any(-1).sum(0)
    single_errors = single.cpu() / (resubmissions * draws)
    return Scores(errors.cpu(), resubmissions, single_errors, draws, random, nan.cpu())


def _check_still(model: AnyModel, x: Tensor, y: Tensor) -> None:
    """Ask networks twice whose parts say that they draw no noise: saying so wrongly would hide it."""
    whole = [model] if isinstance(model, nn.Module) else []
    for network in list(model.members) if isinstance(model, Ensemble) else whole:
        parts = [part for part in network.modules() if says_still(part)]
        # Other parts of a network that draw noise of their own have it fixed for all of them.
        if not parts or draws_own_noise(network):
            continue
        units = Units(network, y, 1)
        with torch.random.fork_rng(devices=[]):
            # The noise of its quantizers is the same both times, where it has any.
            first, again = (
                units.logits(x, seed).double() for seed in ((0, 0) if varies(network) else (0, 1))
            )
        scale = float(first.abs().max())
        if not torch.allclose(first, again, rtol=_STILL, atol=_STILL * scale, equal_nan=True):
            difference = float((first - again).abs().max())
            raise InputError(
                f"{type(parts[0]).__name__} says draws_noise = False, but two calls of the model differ by "
                f"up to {difference:.3g}; allowed where every call gives the same logits"
            )


def pooled(model: HasMemberLogits, probabilities: Tensor) -> Tensor:
    """Return members' probabilities (draws, members, batch, classes) pooled to (draws, batch, classes).

    By their mean, which is squint's rule, or by the model's own `pool_members`, where it has one (a vote).
    """
    pool = getattr(model, "pool_members", None)
    mean: Tensor = probabilities.mean(1) if pool is None else pool(probabilities)
    return mean


def _check(logits: Tensor, y: Tensor) -> None:
    check_logits(logits, len(y))
    check_labels(y, len(y), logits.shape[1])


def errors_of(outputs: Tensor, y: Tensor) -> Tensor:
    """Return (..., batch): 1 where the largest output is not the label's, or an output is NaN, else 0."""
    wrong: Tensor = (outputs.argmax(-1) != y) | outputs.isnan().any(-1)
    return wrong.long()
