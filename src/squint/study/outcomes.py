"""What attacks leave: examples with votes and points of the plane, and the results of all systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from squint import data as D
from squint._random import derive_generator
from squint.attacks.modes import evaluation_mode
from squint.ensemble import Ensemble
from squint.evaluation import RobustnessReport
from squint.evaluation.machine import device_of
from squint.evaluation.plane_points import plane_rows
from squint.evaluation.records import LADDER
from squint.evaluation.settings import named_settings
from squint.evaluation.threats import Setting
from squint.study.config import RecipeConfig, radius_text
from squint.study.systems import environment

FORMAT_VERSION = 1
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


def results_of(
    recipe: RecipeConfig,
    config_hash: str,
    environments: Sequence[Mapping[str, Any]],
    test: D.ImageData,
    outcomes: Mapping[str, Mapping[str, Any] | None],
    seconds: float,
) -> dict[str, Any]:
    """Return what `results.json` holds.

    Args:
        recipe: the study.
        config_hash: of the recipe as it was written.
        environments: the versions and machines that the run has seen.
        test: the test images.
        outcomes: every system's facts, records and points of the plane; None: it is left for later.
        seconds: how long the command took.
    """
    versions, hardware = environment()
    done = [outcome for outcome in outcomes.values() if outcome is not None]
    return {
        "format_version": FORMAT_VERSION,
        "versions": versions,
        "hardware": hardware,
        "environments": environments,
        "config_hash": config_hash,
        "recipe": recipe.name,
        "description": recipe.description,
        "dataset": recipe.dataset,
        "split": recipe.attack.split,
        "class_names": list(test.class_names),
        "headline_system": recipe.headline_system,
        "headline_eps": radius_text(recipe.eps),
        "headline_attack": LADDER if recipe.attack.ladder else named_settings(recipe.attack.attacks)[0].name,
        "seed": recipe.seed,
        "seconds": seconds,
        "systems": [outcome["system"] for outcome in done],
        "left": [recipe.systems[name].title or name for name, each in outcomes.items() if each is None],
        "records": [record for outcome in done for record in outcome["records"]],
        "plane": [row for outcome in done for row in outcome["plane"]],
    }
