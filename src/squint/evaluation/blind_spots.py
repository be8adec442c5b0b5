"""Random steps beside the gradient: elements it gives no weight and that move the outputs, or wrong signs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from squint._checks import check_number
from squint._random import derive_generator, derive_seed
from squint.attacks.geometry import Ball
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.objectives import objective
from squint.evaluation.path_integral import path_integral
from squint.evaluation.records import Finding

BLIND_DRAWS = 64
BLIND_IMAGES = 32
"""Images that preflight looks at, three times as dearly as `gradient_flags.fidelity` does."""
LOOKS = ((0.25, 0.2), (0.5, 0.4))
"""The least weighted quarter and half of an image's elements, each with the effect, in that of the more
weighted half, from which hiding them would pay."""
LEAST_EXPLAINED = 0.1
"""What gradients must explain of that effect, as a share of what they explain of the more weighted half's."""
LEAST_ELSEWHERE = 0.2
"""What gradients must explain there to be compared: those of coarse honest quantizers explain nothing."""
LEAST_OF_STEADY = 0.6
"""What gradients must explain of random steps, as a share of how steadily the margin follows these."""
LEAST_STEADY = 0.5
"""Steadiness from which a step is one that gradients could have explained."""
_HELD, _NODES, _DIRECTIONS, _PARTS = 16, 4, 2, 4


@dataclass(frozen=True)
class Influence:
    """What random steps of length eps do to the margin on the least weighted elements, look by look.

    Attributes:
        effects: root mean square of the expected margin's change over that on the more weighted half of the
            elements; 0 where noise hides it.
        explained: share of the change that gradients along the step add up to.
        others_explained: the same on the more weighted half.
        standard_errors: of `explained` less what is asked for, over images.
        images: images that were looked at.
        steadiness: of the steps on the more weighted half: correlation of what neighbouring quarters of a
            step do to the margin. 1 where it is linear, 0 and less where each quarter rounds anew.
        steady_error: standard error of `others_explained` less what steadiness asks for, over images.
    """

    effects: tuple[float, ...]
    explained: tuple[float, ...]
    others_explained: float
    standard_errors: tuple[float, ...]
    images: int = 0
    steadiness: float = 0.0
    steady_error: float = 0.0


def influence(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    seed: int,
    draws: int = BLIND_DRAWS,
    chunk: int | None = None,
) -> Influence:
    """Return how far gradients explain what the elements do that they give the least weight.

    `gradient_flags.fidelity` steps along the gradient, and so never where that is zero, and hardly where its
    sign alone is wrong: a model that hides a part of the image from it, bit for bit the same function,
    passes. Here steps are random corners of the ball, on the elements with the smallest |gradient| and on the
    others. Predicted is the path integral of the gradient, actual the change of the pooled logits' margin,
    both from draws of their own: the actual change twice, so that the product of both is an unbiased square.
    Explained is the sum of predicted times actual over the sum of squares: 1 for a true gradient, whatever
    its size.

    Args:
        model: in evaluation mode.
        x: images (batch, ...), 2 or more.
        y: labels (batch,).
        eps: length of the steps (L∞), which are cut at [0, 1].
        seed: of the noise and the corners.
        draws: draws of the first gradient and of both ends of a step; a quarter of them serves each node.
        chunk: draws whose graph is held in memory at once.
    """
    check_number("draws", draws, _NODES, whole=True)
    ball, goal = Ball(x, eps), objective("mean_logits_margin", y)
    chunk = min(chunk or _HELD, _HELD)
    units, node = Units(model, y, draws, chunk=chunk), Units(model, y, draws // _NODES, chunk=chunk)
    generator = derive_generator(seed, "blind spots")
    _, start = units.gradient(ball.x, goal, derive_seed(seed, "blind spots", "weights"))
    weights = start.nan_to_num(0.0).flatten(1).abs()
    ranked = weights.argsort(1)

    def least(share: float) -> Tensor:
        few = ranked[:, : max(1, int(share * weights.shape[1]))]
        return torch.zeros_like(weights, dtype=torch.bool).scatter(1, few, True).view_as(x)

    def effect(where: Tensor, name: str, parts: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return, by image, predicted times actual change and the square of the actual one, twice.

        First of whole steps; then of their parts, where a part is predicted to do what its neighbour does.
        """
        explained, square, product, alike = torch.zeros(4, len(x), dtype=torch.float64, device=x.device)
        for turn in range(_DIRECTIONS):
            keys = ("blind spots", name, turn)
            signs = torch.randint(2, x.shape, generator=generator).to(x) * 2 - 1
            step = ball.project(ball.x + eps * signs * where) - ball.x
            path = path_integral(node, ball.x, step, goal, derive_seed(seed, *keys, "path"), nodes=_NODES)
            changes = []
            for end in range(2):
                bank = derive_seed(seed, *keys, "ends", end)
                stops = (ball.x + part / parts * step for part in range(parts + 1))
                margins = torch.stack([goal(units.logits(stop, bank).double()) for stop in stops])
                changes.append(margins.diff(dim=0))
            one, other = changes
            explained += path * (one.sum(0) + other.sum(0)) / 2
            square += one.sum(0) * other.sum(0)
            product += (one[:-1] * other[1:] + one[1:] * other[:-1]).sum(0)
            alike += (one[:-1] * other[:-1] + one[1:] * other[1:]).sum(0)
        return explained, square, product, alike

    looks = [torch.stack(effect(least(share), f"least {share}")) for share, _ in LOOKS]
    sums = torch.stack([torch.stack(effect(~least(0.5), "others", _PARTS)), *looks])
    return _influence(sums[:, :, sums.isfinite().all(0).all(0)])


def blind_spots(measured: Influence) -> Finding | None:
    """Return a finding if elements without weight in the gradient move the outputs and it does not know.

    Both must hold in a look: the least weighted elements do much of what the others do, and gradients explain
    little of it beside what they explain there, by two standard errors. Gradients of an honest network
    explain what the least weighted elements do as they explain the rest. Those of coarse deterministic
    quantizers explain next to nothing anywhere, which says nothing about a part.
    """
    if measured.others_explained < LEAST_ELSEWHERE:
        return None
    for place, (share, least) in enumerate(LOOKS):
        effect, explained = measured.effects[place], measured.explained[place]
        lacking = explained - LEAST_EXPLAINED * measured.others_explained
        if effect >= least and lacking + 2 * measured.standard_errors[place] < 0:
            return Finding(
                "blind_spots",
                f"the {share:.0%} of the image that gradients weight least move outputs {effect:.2f} times "
                f"as far as the more weighted half, and gradients explain {explained:.0%} of that, and "
                f"{measured.others_explained:.0%} of what the half does",
                asdict(measured),
            )
    return None


def unexplained_steps(measured: Influence) -> Finding | None:
    """Return a finding if the margin follows random steps steadily and gradients do not know.

    A margin whose next quarter of a step does what the last one did has a slope there, and a gradient that
    explains little of it is not that slope, whatever it is along its own sign. Of coarse deterministic
    quantizers gradients explain next to nothing either, but there each quarter of a step rounds anew.
    """
    asked = LEAST_OF_STEADY * measured.steadiness
    if measured.steadiness < LEAST_STEADY or measured.others_explained + 2 * measured.steady_error >= asked:
        return None
    return Finding(
        "unexplained_steps",
        f"gradients explain {measured.others_explained:.0%} of what random steps of eps do to the outputs, "
        f"which follow them steadily (correlation {measured.steadiness:.2f}); asked for: {asked:.0%}",
        asdict(measured),
    )


def _influence(sums: Tensor) -> Influence:
    """Return shares from (groups, 4, n), what `effect` returns: of the others, then of each look."""
    n = sums.shape[2]
    idle = (0.0,) * len(LOOKS)
    if n < 2 or not float(sums[0, 1].sum()) > 0:
        return Influence(idle, idle, 0.0, idle, n)
    total = sums.sum(2)
    others = total[0, 0] / total[0, 1]
    around = (sums[0, 0] - others * sums[0, 1]) / total[0, 1]
    found = []
    for (explained, square, *_), whole in zip(sums[1:], total[1:], strict=True):
        if not _above_noise(square):
            found.append((0.0, 0.0, 0.0))
            continue
        share = whole[0] / whole[1]
        errors = (explained - share * square) / whole[1] - LEAST_EXPLAINED * around
        error = float(errors.std()) * math.sqrt(n)
        found.append((math.sqrt(float(whole[1] / total[0, 1])), float(share), error))
    effects, shares, errors_of = zip(*found, strict=True)
    return Influence(effects, shares, float(others), errors_of, n, *_steadiness(sums[0], around))


def _steadiness(sums: Tensor, around: Tensor) -> tuple[float, float]:
    """Return the steadiness from (4, n) of the others, and the error of what they explain less its share."""
    product, alike = sums[2], sums[3]
    if not _above_noise(alike):
        return 0.0, 0.0
    steady = product.sum() / alike.sum()
    lacking = around - LEAST_OF_STEADY * (product - steady * alike) / alike.sum()
    return float(steady), float(lacking.std()) * math.sqrt(len(lacking))


def _above_noise(squares: Tensor) -> bool:
    """Return whether the steps do anything: squares (n,) from two banks of draws are negative by chance."""
    return float(squares.sum()) > 2 * float(squares.std()) * math.sqrt(len(squares))
