"""Fitting learned scores: on clean data, and for the combination on noise; never on an attack."""

from __future__ import annotations

import torch
from torch import Tensor

from squint._checks import HasMemberLogits
from squint._random import derive_generator
from squint.attacks.noise import random_noise
from squint.ensemble import Ensemble
from squint.evaluation.detection.fitted import COMBINATION, FITTED, Combination, FittedScore
from squint.evaluation.detection.outputs import Observed, WithFeatures
from squint.evaluation.machine import device_of

NOISE_RADII = (8 / 255, 16 / 255, 32 / 255, 64 / 255)
"""Radii of the noise that the combination is trained on."""


def view_of(ens: Ensemble, fitted: FittedScore | None) -> HasMemberLogits:
    """Return the model whose outputs a score reads: the ensemble, with its features where they are needed."""
    return WithFeatures(ens) if fitted is not None and fitted.reads_features else ens


def fit_score(
    ens: Ensemble, score: str, images: Tensor, labels: Tensor, num_classes: int, observed: Observed
) -> FittedScore:
    """Return a learned score fitted to one deployment of each clean image, and of each noisy one."""
    device = device_of(ens)
    if score != COMBINATION:
        seen = observed.outputs(WithFeatures(ens), images.to(device), "fit")
        return FITTED[score].fit(seen, labels, num_classes)
    noisy = []
    for radius in NOISE_RADII:
        generator = derive_generator(observed.seed, "detector", "noise", radius)
        changed = random_noise(images, eps=radius, generator=generator)
        noisy.append(observed.outputs(ens, changed.to(device), "fit", radius))
    return Combination.fit_noise(observed.outputs(ens, images.to(device), "fit"), torch.cat(noisy, 2))
