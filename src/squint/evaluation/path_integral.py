"""What gradients along a straight step add up to, asked for at places that a model cannot know."""

from __future__ import annotations

import torch
from torch import Tensor

from squint._random import derive_generator, derive_seed
from squint.attacks.gradients import Units
from squint.attacks.objectives import Objective


def path_integral(units: Units, x: Tensor, step: Tensor, goal: Objective, seed: int, *, nodes: int) -> Tensor:
    """Return ∫⟨∇L(x + t·step), step⟩ dt, t from 0 to 1, by image: float64 (batch,).

    For a true gradient this is L(x + step) − L(x), however curved the network (fundamental theorem of
    calculus). The step is cut into equal parts with a node at a random place of each, and at another one for
    each image (stratified sampling): unbiased, and behaving well at a fixed set of places does not help a
    model.

    Args:
        units: what draws and takes gradients; each node has a bank of draws of its own.
        x: images (batch, ...).
        step: (batch, ...).
        goal: L, of logits.
        seed: of the places and the draws.
        nodes: parts.
    """
    places = derive_generator(seed, "places")
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for index in range(nodes):
        within = torch.rand(len(x), *(1 for _ in x.shape[1:]), generator=places).to(x)
        _, slope = units.gradient(x + (index + within) / nodes * step, goal, derive_seed(seed, index))
        total += along(slope, step) / nodes
    return total


def along(slope: Tensor, step: Tensor) -> Tensor:
    """Return the inner product of gradients and steps (batch, ...) by image, in float64."""
    return (slope.flatten(1) * step.flatten(1).double()).sum(1)
