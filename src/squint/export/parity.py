"""The parity gate: does the exported graph compute what the ensemble computes?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from squint._checks import InputError
from squint._random import derive_generator
from squint.ensemble import Ensemble, log_mean_probability
from squint.export.onnx.runtime import OnnxModel

RUNS = 32
"""Predictions of each image that a stochastic graph and its ensemble are compared over."""
STOCHASTIC_IMAGES = 32
FEWEST_STOCHASTIC = 8
"""Fewer images give no standard error to judge by."""
FALSE_ALARM = 1e-4
"""Chance that a session of an equal graph is refused because of its mean, or because of its variance."""
MAX_VARIANCE_DEVIATION = 5.0
"""Mean difference of the variances in standard errors over images that is always allowed."""


def limits(n: int) -> tuple[float, float]:
    """Return the largest deviations of mean and variance, as `Comparison` has them, over n images.

    Of an image's probabilities, which sum to one and often are two that matter, one counts as free: n z² is
    then χ² of n degrees of freedom, a little wider because standard errors are estimates.
    """
    wider = (2 * RUNS - 2) / (2 * RUNS - 4)
    mean = math.sqrt(wider * special.chdtri(n, FALSE_ALARM) / n)
    return mean, max(MAX_VARIANCE_DEVIATION, float(special.stdtrit(n - 1, 1 - FALSE_ALARM / 2)))


class ParityError(InputError):
    """A graph that does not compute what its ensemble computes.

    Attributes:
        problem: what differs, in one clause.
        sampled: whether the graph draws noise.
        integer_sums: whether it adds residual branches in 8-bit codes, and may be closer without.
    """

    def __init__(self, problem: str, sampled: bool, integer_sums: bool) -> None:
        closer = "integer_sums=False may be closer, " if integer_sums else ""
        super().__init__(
            f"the exported graph does not match the ensemble: {problem} ({closer}force=True writes it)"
        )
        self.problem, self.sampled, self.integer_sums = problem, sampled, integer_sums


@dataclass(frozen=True)
class Comparison:
    """One session of the graph beside the ensemble.

    Attributes:
        optimized: whether the runtime's graph optimizations were on.
        n: images.
        accuracy: of the graph; None without labels.
        disagreement: share of images with another predicted class; None for stochastic graphs.
        max_difference: largest difference of a log probability; None for stochastic graphs.
        mean_deviation: root mean square over images and classes of the difference between the mean
            probabilities in standard errors; None for deterministic graphs.
        variance_deviation: difference of the variances over draws, averaged over images, in standard errors;
            None for deterministic graphs.
    """

    optimized: bool
    n: int
    accuracy: float | None
    disagreement: float | None = None
    max_difference: float | None = None
    mean_deviation: float | None = None
    variance_deviation: float | None = None

    def problem(self, max_disagreement: float) -> str | None:
        """Return what is wrong in one clause, or None."""
        where = f"with graph optimizations {'on' if self.optimized else 'off'}"
        if self.disagreement is not None and self.disagreement > max_disagreement:
            return f"{self.disagreement:.1%} of predictions differ {where}; allowed: {max_disagreement:.1%}"
        if self.mean_deviation is None or self.variance_deviation is None:
            return None
        found = (("mean", self.mean_deviation), ("variance", self.variance_deviation))
        for (name, value), limit in zip(found, limits(self.n), strict=True):
            if not abs(value) <= limit:
                return (
                    f"the {name} over draws is {value:.2f} standard errors off {where}; allowed: {limit:.2f}"
                )
        return None


@dataclass(frozen=True)
class Parity:
    """The ensemble beside its graph, graph optimizations on and off.

    Attributes:
        rounding: of both.
        n: images.
        accuracy: of the ensemble; None without labels.
        comparisons: one for each session.
    """

    rounding: str
    n: int
    accuracy: float | None
    comparisons: tuple[Comparison, ...]


def check_parity(
    twin: Ensemble,
    model: bytes,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    rounding: str,
    max_disagreement: float = 0.02,
    integer_sums: bool = False,
    force: bool = False,
) -> Parity:
    """Return how the graph compares with the ensemble, or refuse it.

    Args:
        twin: the ensemble in evaluation mode on the CPU, in the rounding mode of the graph.
        model: the exported model.
        images: (n, ...) real images; stochastic graphs are compared on the first 32.
        labels: (n,) their labels.
        rounding: "nearest" compares predictions, "sample" mean and variance over draws.
        max_disagreement: largest share of images whose deterministic prediction may change.
        integer_sums: whether the graph has residual sums in 8-bit codes, for the advice.
        force: report a difference instead of raising.

    Raises:
        ParityError: they differ by more than is allowed; a squint.InputError.
    """
    sampled = rounding == "sample"
    if sampled and len(images) < FEWEST_STOCHASTIC:
        raise InputError(
            f"images has {len(images)}; a stochastic graph is compared over {FEWEST_STOCHASTIC} or more"
        )
    images = images[:STOCHASTIC_IMAGES] if sampled else images
    labels = None if labels is None else labels[: len(images)].cpu()
    ours = _samples(twin, images) if sampled else _logits(twin, images)
    compare = _compare_samples if sampled else _compare_logits
    comparisons = tuple(
        compare(OnnxModel(model, optimized=optimized), optimized, images, labels, ours)
        for optimized in (True, False)
    )
    problem = next((p for p in (c.problem(max_disagreement) for c in comparisons) if p), None)
    if problem and not force:
        raise ParityError(problem, sampled, integer_sums)
    scores = ours.double().exp().mean(0) if sampled else ours
    return Parity(rounding, len(images), _accuracy(scores, labels), comparisons)


def _accuracy(scores: Tensor, labels: Tensor | None) -> float | None:
    return None if labels is None else float((scores.argmax(-1) == labels).double().mean())


def _logits(twin: Ensemble, images: Tensor) -> Tensor:
    # Nothing is drawn under "nearest": one draw is all of them, and the generator spares squint's stream.
    generator = derive_generator(0, "parity")
    with torch.no_grad():
        parts = [
            log_mean_probability(twin.member_logits(part, 1, generator=generator))
            for part in torch.split(images.cpu().float(), 128)
        ]
    return torch.cat(parts)


def _samples(twin: Ensemble, images: Tensor) -> Tensor:
    """Return (RUNS, n, classes) log mean probabilities, each over the ensemble's own draws."""
    generator = derive_generator(0, "parity")
    x = images.cpu().float()
    with torch.no_grad():
        runs = [
            log_mean_probability(twin.member_logits(x, twin.draws, generator=generator)) for _ in range(RUNS)
        ]
    return torch.stack(runs)


def _compare_logits(
    model: OnnxModel, optimized: bool, images: Tensor, labels: Tensor | None, ours: Tensor
) -> Comparison:
    theirs = torch.cat([model(part.cpu().float()) for part in torch.split(images, 128)])
    return Comparison(
        optimized,
        len(images),
        _accuracy(theirs, labels),
        disagreement=float((theirs.argmax(1) != ours.argmax(1)).double().mean()),
        max_difference=float((theirs - ours).abs().max()),
    )


def _compare_samples(
    model: OnnxModel, optimized: bool, images: Tensor, labels: Tensor | None, ours: Tensor
) -> Comparison:
    theirs = torch.stack([model(images.cpu().float()) for _ in range(RUNS)]).double().exp()
    mine = ours.double().exp()
    return Comparison(
        optimized,
        len(images),
        _accuracy(theirs.mean(0), labels),
        mean_deviation=_mean_deviation(mine, theirs),
        variance_deviation=_variance_deviation(mine, theirs),
    )


def _mean_deviation(a: Tensor, b: Tensor) -> float:
    """Return the root mean square of z over images and classes, from (runs, images, classes)."""
    error = (a.var(0) + b.var(0)) / len(a)
    # Below this a probability does not matter, and its standard error is float rounding.
    z = (a.mean(0) - b.mean(0)) / error.clamp_min(1e-10).sqrt()
    return float(z.square().mean().sqrt())


def _variance_deviation(a: Tensor, b: Tensor) -> float:
    """Return the mean over images of the total variance's difference, in standard errors over images."""
    difference = (b.var(0) - a.var(0)).sum(-1)
    error = float(difference.std()) / math.sqrt(len(difference))
    return float(difference.mean()) / max(error, 1e-10)
