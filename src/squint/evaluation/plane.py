"""Points of the adversarial information plane: information between members against accuracy."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from squint._random import derive_generator
from squint.ensemble import Ensemble
from squint.evaluation.intervals import wilson
from squint.information import bootstrap_interval, shuffled_baseline, soft_label_mutual_information

_DRAWS = 16
_REPEATS = 100


def plane_row(
    ens: Ensemble, x: Tensor, correct: Tensor, *, system: str, threat: str, eps: str, seed: int
) -> dict[str, Any]:
    """Return one point: mean soft-label information over pairs of members, and its shuffled baseline.

    Args:
        ens: two members or more.
        x: the images as the threat left them (n, ...).
        correct: share of correct deployments per image (n,).
        system: name of the system.
        threat: name of the threat model.
        eps: radius as text; "0" is the clean point.
        seed: of draws, shuffles and bootstrap.
    """
    probabilities = member_probabilities(ens, x, seed)
    pairs = list(combinations(range(probabilities.shape[0]), 2))

    def information(*members: Tensor) -> Tensor:
        return torch.stack([soft_label_mutual_information(members[i], members[j]) for i, j in pairs]).mean()

    generator = derive_generator(seed, "plane", system, threat, eps)
    members = list(probabilities)
    baselines = [
        shuffled_baseline(
            soft_label_mutual_information, members[i], members[j], generator=generator, repeats=8
        ).mean
        for i, j in pairs
    ]
    low, high = bootstrap_interval(information, *members, generator=generator, repeats=_REPEATS)
    value = float(information(*members))
    accuracy, n = float(correct.mean()), len(x)
    return {
        "system": system,
        "threat": threat,
        "eps": eps,
        "information": value,
        "baseline": sum(baselines) / len(baselines),
        "information_ci95": [low, high],
        "accuracy": accuracy,
        "accuracy_ci95": list(wilson(accuracy * n, n)),
        "n": n,
        "draws": _DRAWS,
    }


@torch.no_grad()
def member_probabilities(ens: Ensemble, x: Tensor, seed: int, batch_size: int = 256) -> Tensor:
    """Return each member's draw-averaged probabilities, (members, n, classes), float64 on the CPU."""
    device = next(ens.parameters()).device
    parts = []
    for chunk, first in enumerate(range(0, len(x), batch_size)):
        generator = derive_generator(seed, "plane draws", chunk)
        logits = ens.member_logits(x[first : first + batch_size].to(device), _DRAWS, generator=generator)
        parts.append(logits.double().softmax(-1).mean(0).cpu())
    return torch.cat(parts, 1)
