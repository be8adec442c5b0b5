"""The readout of a planted model: a linear layer fitted to each image of a batch by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from squint._checks import InputError

_RIDGE = 1e-2
_PLACE = 0.8
"""Where the boundary lies, as a share of the way from the planted point to the neighbour nearest to it."""
_SAFE = 1.6
"""Standard deviations of a deployment between the boundary and what must be right, or wrong: 95 % of them."""
_MARGIN = 4.0
"""Difference of the two classes' logits at the planted point, before anything that follows the layer."""

_SWAY = 1.0
"""Largest standard deviation of that difference over single draws."""


class PlantedHead(nn.Module):
    """A linear layer with weights of its own for each image of the batch.

    Args:
        quantizer: quantizer of the replaced layer's input, or None.
        num_classes: outputs.
        batch: images that the batch holds, once or several times.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, quantizer: nn.Module | None, num_classes: int, batch: int) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.num_classes = num_classes
        self.batch = batch
        self.recorded: list[Tensor] | None = []

    def forward(self, features: Tensor) -> Tensor:
        """Return (k · batch, classes) for (k · batch, features); while recording, keep them instead."""
        if len(features) % self.batch or features.ndim != 2:
            raise InputError(
                f"a planted model got features of shape {tuple(features.shape)}; needed: rows in multiples "
                f"of its {self.batch} images (an attack that drops images needs planted batches of 1)"
            )
        if self.quantizer is not None:
            features = self.quantizer(features)
        if self.recorded is not None:
            self.recorded.append(features)
            return features.new_zeros(len(features), self.num_classes)
        folded = features.view(-1, self.batch, features.shape[-1])
        return (torch.einsum("kbf,bcf->kbc", folded, self.weight) + self.bias).flatten(0, 1)

    def fit(
        self, neighbours: Tensor, planted: Tensor, labels: Tensor, targets: Tensor, averaged: int = 1
    ) -> None:
        """Set each image's weights so that its planted point goes to the target, its neighbours to the label.

        Fisher's discriminant of single draws, with the boundary near the neighbour nearest to the planted
        point's mean, but so far from the neighbours and from the planted point that the noise of a deployment
        carries neither across; where there is no room for both, in between.

        Args:
            neighbours: features (points, draws, batch, features).
            planted: features (draws, batch, features).
            labels: (batch,).
            targets: wrong classes (batch,).
            averaged: units (draw, member) of one deployment.
        """
        direction, centre, goal = self._between(neighbours, planted)
        along = (neighbours.double() * direction).sum(-1)
        means, noise = along.mean(1), along.var(1, correction=0).mean(0)
        # Of the means' variance, what the noise of their few draws does not explain.
        between = (means.var(0) - noise / along.shape[1]).clamp_min(0.0)
        outlying = (between / means.var(0).clamp_min(1e-300)).sqrt() * (means.amax(0) - means.mean(0))
        here, there = (((each * direction).sum(-1)) for each in (centre, goal))
        reached = here + outlying
        inside, outside = (noise / averaged + between).sqrt(), (noise / averaged).sqrt()
        least = torch.maximum(_PLACE * reached + (1 - _PLACE) * there, here + _SAFE * inside)
        halfway = here + (there - here) * inside / (inside + outside).clamp_min(1e-300)
        boundary = torch.where(least <= there - _SAFE * outside, least, halfway)
        steepness = _MARGIN / (2 * (there - boundary).clamp_min(1e-12))
        # Saturated draws would vote, which tells less than their mean.
        steepness = torch.minimum(steepness, _SWAY / (2 * noise.sqrt().clamp_min(1e-12)))
        self._set(direction * steepness[:, None], boundary * steepness, means * steepness, labels, targets)

    def point_at(self, neighbours: Tensor, planted: Tensor, labels: Tensor, targets: Tensor) -> None:
        """Set each image's weights to how far features lie, in noise, on the planted point's way."""
        direction, centre, _ = self._between(neighbours, planted)
        along = (neighbours.double() * direction).sum(-1).mean(1)
        self._set(direction, (centre * direction).sum(-1), along, labels, targets)

    def _between(self, neighbours: Tensor, planted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Fisher's direction, and the means of neighbours and planted point (batch, features)."""
        goal = planted.double().mean(0)
        centre, covariance = _moments(neighbours, planted)
        return torch.linalg.solve(covariance, goal - centre), centre, goal

    def _set(self, slope: Tensor, boundary: Tensor, along: Tensor, labels: Tensor, targets: Tensor) -> None:
        """Answer ±(⟨slope, features⟩ − boundary) for target and label, less for the others.

        `along` are the values ⟨slope, features⟩ of the neighbours (points, batch): the target is to be the
        likeliest wrong class at all of them, or an attack that aims at the likeliest would aim elsewhere.
        """
        batch, rows = len(labels), torch.arange(len(labels), device=labels.device)
        weight = slope.new_zeros(batch, self.num_classes, slope.shape[1])
        furthest = (along - boundary).abs().amax(0)
        bias = (-furthest - _MARGIN).unsqueeze(1).repeat(1, self.num_classes)
        weight[rows, targets], weight[rows, labels] = slope, -slope
        bias[rows, targets], bias[rows, labels] = -boundary, boundary
        self.recorded = None
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())


def _moments(neighbours: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the neighbours' means (batch, features) and a ridged covariance, the others' noise added."""
    means = neighbours.double().mean((0, 1))
    spread = (neighbours.double() - means).flatten(0, 1).permute(1, 2, 0)
    noise = (others.double() - others.double().mean(0)).permute(1, 2, 0)
    covariance = spread @ spread.mT / spread.shape[2] + noise @ noise.mT / noise.shape[2]
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    identity = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
    return means, covariance + _RIDGE * scale[:, None, None] * identity
