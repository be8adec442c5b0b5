"""Red flags of the gradient: missing, blocked by a quantizer, or unlike the change of the expected loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, check_number
from squint._random import derive_seed
from squint.attacks.geometry import Ball
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.objectives import objective
from squint.evaluation.path_integral import along, path_integral
from squint.evaluation.records import Finding, finite
from squint.quantize import StochasticQuantizer

_HELD = 16
"""Draws whose graph is held at once."""
FIDELITY_DRAWS = 128
FIDELITY_RANGE = (0.7, 1.4)
MOST_ZERO = 0.01
PREDICTED_WITHIN = 3.0
"""Factor up to which one image's rise counts as predicted; surrogates of coarse honest quantizers need it."""
MOST_UNSEEN = 0.05
"""Share of the images of which gradients may see less than a third of what the loss does, or the opposite."""
MOST_OVERSTATED = 0.15
"""Share of the images of which gradients may promise over three times the rise, as coarse quantizers do."""
_ROUNDING = 1e-9
"""Nats that rounding may hide: a confident network's loss stands still where its gradient does not."""
_NODES = 8


def zero_gradients(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    draws: int = 8,
    chunk: int | None = None,
    batch_size: int = 100,
) -> list[Finding]:
    """Return findings for missing gradients: of over 1 % of the examples, or behind a quantizer.

    Missing is a gradient that is zero throughout, or has an element that is not finite.
    The gradient is that of −log p̄_y at x, pooled over `draws`, with the loss head in float64. A quantizer is
    found where a gradient reaches its output on some example and none leaves through its input on any.

    Args:
        model: in evaluation mode.
        x: images (n, ...).
        y: labels (n,).
        seed: of the noise.
        draws: single draws per gradient.
        chunk: draws whose graph is held in memory at once.
        batch_size: images whose gradients are taken at once.
    """

    def missing(part: AnyModel, *keys: object) -> float:
        absent = []
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)
            units = Units(part, y[rows], draws, chunk=chunk)
            stream = derive_seed(seed, "zero gradients", *keys, first)
            _, gradient = units.gradient(x[rows], objective("ce", y[rows]), stream)
            flat = gradient.flatten(1)
            absent.append((flat == 0).all(1) | ~flat.isfinite().all(1))
        return float(torch.cat(absent).double().mean())

    with _watched_quantizers(model) as seen:
        share = missing(model)
    findings = []
    if share > MOST_ZERO:
        findings.append(_missing(share, "", len(x), draws))
    else:
        # The pooled gradient of an ensemble hides a member that has none.
        for place in range(_members(model, x)):
            share = missing(_Member(model, place), place)
            if share > MOST_ZERO:
                findings.append(_missing(share, f" in member {place}", len(x), draws))
    blocked = [name for name, (arrives, leaves) in seen.items() if arrives and not leaves]
    findings.extend(
        Finding(
            "zero_surrogate",
            f"no gradient passes through {name}: its surrogate is zero on all {len(x)} examples",
            {"quantizer": name, "n": len(x)},
        )
        for name in blocked
    )
    return findings


def _missing(share: float, where: str, n: int, draws: int) -> Finding:
    return Finding(
        "zero_gradients",
        f"{share:.1%} of the examples have an all-zero gradient{where}, or one that is not finite; allowed: "
        f"{MOST_ZERO:.0%}",
        {"share": share, "n": n, "draws": draws},
    )


def _members(model: AnyModel, x: Tensor) -> int:
    """Return how many members a model has that has several, else 0."""
    if not isinstance(model, HasMemberLogits):
        return 0
    with torch.no_grad():
        count = model.member_logits(x[:1], 1, generator=torch.Generator().manual_seed(0)).shape[1]
    return count if count > 1 else 0


@dataclass(frozen=True)
class _Member:
    """One member of a model, as a model that has only this one."""

    model: AnyModel
    place: int

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return the member's logits (draws, 1, batch, classes)."""
        model = cast(HasMemberLogits, self.model)
        logits = model.member_logits(x, draws, generator=generator, stratified=stratified)
        return logits[:, self.place : self.place + 1]


@dataclass(frozen=True)
class Fidelity:
    """How well gradients predict the rise of the expected loss along one sign step of length eps.

    Attributes:
        predicted: rise of the mean loss that gradients along the step add up to.
        actual: rise of the mean loss.
        at_start: rise that the gradient at x alone predicts to first order, for comparison.
        ratio: predicted over actual; infinite where the loss does not rise.
        standard_error: of the ratio, over images.
        unseen: share of the images whose loss moves over three times as far as gradients predict, or the
            other way, or is finite where they are not.
        overstated: share of the images whose loss moves less than a third as far as predicted, or not at all.
        images: images that were looked at.
    """

    predicted: float
    actual: float
    at_start: float
    ratio: float
    standard_error: float
    unseen: float = 0.0
    overstated: float = 0.0
    images: int = 0


def fidelity(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    seed: int,
    draws: int = FIDELITY_DRAWS,
    chunk: int | None = None,
) -> Fidelity:
    """Return predicted and actual rise of E[−log p_y] along x + t·d, d the sign step, t from 0 to 1.

    The gradient at x alone predicts no honest network at a useful eps: cross-entropy is convex in the margin,
    so a confident network's loss rises many times as much as its slope at x says. Predicted is therefore the
    path integral of the gradient (`path_integral`), which for a true one *is* the rise. What is left in the
    ratio is the error of the surrogate: gradients that do not belong to the function. The direction, the path
    and the two ends use draws of their own; the ends share theirs. Images where a loss or gradient is not
    finite are left out of the means.

    Args:
        model: in evaluation mode.
        x: images (batch, ...).
        y: labels (batch,).
        eps: length of the step (L∞); the step is cut at [0, 1].
        seed: of the noise.
        draws: draws of the direction and of both ends; an eighth of them serves each of the 8 path nodes.
        chunk: draws whose graph is held in memory at once.
    """
    check_number("draws", draws, _NODES, whole=True)
    ball, goal = Ball(x, eps), objective("mean_ce", y)
    # All draws at once take tens of gigabytes, which the system may end before torch can say so.
    chunk = min(chunk or _HELD, _HELD)
    units, node = Units(model, y, draws, chunk=chunk), Units(model, y, draws // _NODES, chunk=chunk)
    _, start = units.gradient(ball.x, goal, derive_seed(seed, "fidelity", "direction"))
    step = ball.project(ball.x + eps * ball.normalise(start.nan_to_num(0.0))) - ball.x
    path = path_integral(node, ball.x, step, goal, derive_seed(seed, "fidelity", "path"), nodes=_NODES)
    ends = derive_seed(seed, "fidelity", "ends")
    before, after = (goal(units.logits(point, ends).double()) for point in (ball.x, ball.x + step))
    rise = after - before
    finite, looked = path.isfinite() & rise.isfinite(), rise.isfinite()
    count, lost = int(looked.sum()), int((looked & ~finite).sum())
    path, rise, start, step = path[finite], rise[finite], start[finite], step[finite]
    if not len(path):
        return Fidelity(0.0, 0.0, 0.0, math.inf, math.inf, lost / max(count, 1), 0.0, count)
    predicted, actual = float(path.mean()), float(rise.mean())
    ratio = error = math.inf
    if actual > 0:
        ratio = predicted / actual
        if len(path) > 1:
            error = float((path - ratio * rise).std()) / math.sqrt(len(path)) / actual
    first_order = float(along(start, step).mean())
    unseen = int((path * rise.sign() < rise.abs() / PREDICTED_WITHIN).sum()) + lost
    still = (rise == 0) & (path.abs() > _ROUNDING)
    overstated = int((still | (path * rise.sign() > rise.abs() * PREDICTED_WITHIN)).sum())
    shares = unseen / count, overstated / count
    return Fidelity(predicted, actual, first_order, ratio, error, *shares, count)


def unfaithful(measured: Fidelity) -> Finding | None:
    """Return a finding if predicted over actual rise lies outside [0.7, 1.4].

    Where neither the gradients nor the loss move there is nothing to compare: `zero_gradients` says so.
    """
    low, high = FIDELITY_RANGE
    if low <= measured.ratio <= high or measured.predicted == measured.actual == 0:
        return None
    return Finding(
        "unfaithful_gradient",
        f"gradients along a step of eps predict {measured.ratio:.2f} times the rise of the expected loss; "
        f"allowed: {low} to {high}",
        {
            "ratio": finite(measured.ratio),
            "standard_error": finite(measured.standard_error),
            "predicted": measured.predicted,
            "actual": measured.actual,
            "at_start": finite(measured.at_start),
        },
    )


def unevenly_faithful(measured: Fidelity) -> Finding | None:
    """Return a finding if gradients fail on some of the images, however well they do on the mean of all.

    Where a part of the images is masked, their own predicted and actual rise may both be about zero, so that
    the ratio of the means is that of the others. Image by image honest gradients predict it within
    a factor of three, on all images but a few. Allowed are these few and two standard errors of their share.
    """
    for share, allowed, what in (
        (measured.unseen, MOST_UNSEEN, "predict less than a third of what the loss does, or the opposite"),
        (measured.overstated, MOST_OVERSTATED, "promise over three times the rise of the loss"),
    ):
        n = measured.images
        if n and share * n > allowed * n + 2 * math.sqrt(allowed * (1 - allowed) * n):
            return Finding(
                "unfaithful_on_some",
                f"on {share:.1%} of {n} images gradients along a step of eps {what}; allowed: {allowed:.0%} "
                "and two standard errors",
                {"unseen": measured.unseen, "overstated": measured.overstated, "n": n, "allowed": allowed},
            )
    return None


@contextmanager
def _watched_quantizers(model: object) -> Iterator[dict[str, tuple[bool, bool]]]:
    """Yield, by quantizer, whether a gradient reached its output and whether one left through its input."""
    seen: dict[str, tuple[bool, bool]] = {}

    def watch(name: str) -> Any:
        def record(_: nn.Module, inward: tuple[Tensor | None, ...], outward: tuple[Tensor, ...]) -> None:
            arrives, leaves = seen.get(name, (False, False))
            seen[name] = (arrives or _any(outward), leaves or _any(inward))

        return record

    handles = [
        part.register_full_backward_hook(watch(name or part.name))
        for name, part in (model.named_modules() if isinstance(model, nn.Module) else ())
        if isinstance(part, StochasticQuantizer)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _any(gradients: tuple[Tensor | None, ...]) -> bool:
    return any(gradient is not None and bool((gradient != 0).any()) for gradient in gradients)
