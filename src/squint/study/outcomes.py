"""What an attack on a system leaves beside its records: examples with votes, and points of the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from squint import data as D
from squint._random import derive_generator
from squint.attacks.gradients import evaluation_mode
from squint.ensemble import Ensemble
from squint.evaluation import RobustnessReport
from squint.evaluation.machine import device_of
from squint.evaluation.plane_points import plane_rows
from squint.evaluation.threats import Setting
from squint.study.config import RecipeConfig

_SHOWN = 64


def plane_of(recipe: RecipeConfig, ens: Ensemble, test: D.ImageData, report: RobustnessReport) -> list[Any]:
    """Return the system's points of the information plane; a single network has no pairs of members.

    Args:
        recipe: the study.
        ens: the system, where it computes.
        test: the attacked images.
        report: what the first attack did to them at every radius.
    """
    if len(ens.members) < 2:
        return []
    first = report.outcomes[0].attack
    settings = [(Setting("0", 0), test.float_images(), report.clean_correct)] + [
        (Setting(record.eps, outcome.eps), outcome.adversarial, outcome.correct)
        for record, outcome in zip(report.records, report.outcomes, strict=True)
        if outcome.attack == first
    ]
    device = device_of(ens)
    with evaluation_mode(ens):
        rows = [
            row
            for setting, x, correct in settings
            for row in plane_rows(
                ens,
                [(x[i : i + 256].to(device), test.labels[i : i + 256]) for i in range(0, len(x), 256)],
                system=report.system,
                threat=first,
                setting=setting,
                correct=correct,
                seed=recipe.seed,
            )
        ]
    return [row.to_json() for row in rows]


def examples_of(
    recipe: RecipeConfig,
    ens: Ensemble,
    test: D.ImageData,
    report: RobustnessReport,
    ladder: RobustnessReport | None,
) -> dict[str, NDArray[Any]]:
    """Return the first images under the headline attack, and every image's outcome under every setting.

    Args:
        recipe: the study.
        ens: the system, where it computes.
        test: the attacked images.
        report: what the attacks did to them.
        ladder: what the ladder did to the first of them, if it was climbed.
    """
    outcome = report.outcome(recipe.eps, report.outcomes[0].attack)
    shown = min(_SHOWN, len(test))
    kept = {
        "index": np.arange(shown),
        "label": test.labels[:shown].numpy(),
        "clean": test.images[:shown].numpy(),
        "adversarial": outcome.adversarial[:shown].mul(255).round().to(torch.uint8).numpy(),
        "clean_votes": _votes(recipe, report.system, ens, test.float_images()[:shown]),
        "adversarial_votes": _votes(recipe, report.system, ens, outcome.adversarial[:shown]),
        "error_share": (1 - outcome.correct[:shown]).numpy(),
        "clean_correct": report.clean_correct.numpy(),
        "settings": np.array([f"{record.attack} {record.eps}" for record in report.records]),
        "correct": torch.stack([each.correct for each in report.outcomes]).numpy(),
    }
    if ladder is not None:
        kept["ladder_settings"] = np.array([f"{record.attack} {record.eps}" for record in ladder.records])
        kept["ladder_correct"] = torch.stack([each.correct for each in ladder.outcomes]).numpy()
    return kept


def _votes(recipe: RecipeConfig, name: str, ens: Ensemble, x: Tensor) -> NDArray[Any]:
    """Return each member's own class (n, members), from its mean over the deployed draws."""
    generator = derive_generator(recipe.seed, "votes", name)
    device = device_of(ens)
    with torch.no_grad():
        logits = ens.member_logits(x.to(device), ens.draws, generator=generator)
    votes: NDArray[Any] = logits.softmax(-1).mean(0).argmax(-1).T.cpu().numpy()
    return votes
