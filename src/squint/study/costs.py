"""What a system costs to train and to run: the columns of a study beside accuracy."""

from __future__ import annotations

from typing import Any

from squint import data as D
from squint.ensemble import Ensemble
from squint.export.sizes import info_table
from squint.study.config import RecipeConfig, SystemConfig


def passes_per_step(system: SystemConfig) -> int:
    """Return the forward passes of one training step, each of one member under one draw over the batch.

    The gradient of a pass is counted with it. Smoothness looks at two further points, and where it measures
    curvature differentiates their gradients, which counts twice; a rival knows its own.
    """
    objective = system.objective
    points = (5 if objective.smoothness_kind == "curvature" else 3) if objective.smoothness > 0 else 1
    defence = system.defence
    members = defence.member_count(len(system.members))
    return points * defence.passes_per_step(members, system.training_draws)


def epochs_of(recipe: RecipeConfig, name: str) -> int:
    """Return how many epochs a system is trained: its own, the recipe's, or what equal compute asks for.

    With `equal_compute` a system with fewer passes per step than the headline's gets more epochs, in
    proportion, rounded up; one with more passes keeps the recipe's epochs. What is more than equal is flagged
    by its `training_compute`.
    """
    own, epochs = recipe.systems[name].epochs, recipe.train.epochs
    if own is not None:
        return own
    if not recipe.equal_compute:
        return epochs
    headline = passes_per_step(recipe.systems[recipe.headline_system])
    return max(epochs, -(-epochs * headline // passes_per_step(recipe.systems[name])))


def costs_of(recipe: RecipeConfig, name: str, ens: Ensemble, train: D.ImageData) -> dict[str, Any]:
    """Return what a trained system costs, as plain data.

    `stored_bits` holds every weight in its own width; `bit_operations` are those of one deployed prediction
    of one image, over members and draws; `training_passes` counts forward passes of members over images'
    batches, and `training_compute` is their ratio to the headline system's; None where either went on from
    weights whose training is not counted here.

    Args:
        recipe: the study.
        name: of the system.
        ens: the system, trained.
        train: the training images.
    """
    sizes = info_table(ens, train.shape)
    steps = len(train) // recipe.train.batch_size

    def passes(system: str) -> int:
        return epochs_of(recipe, system) * steps * passes_per_step(recipe.systems[system])

    own, headline = passes(name), passes(recipe.headline_system)
    known = all(recipe.systems[each].start is None for each in (name, recipe.headline_system))
    return {
        "stored_bits": 8 * sizes.packed_bytes,
        "bit_operations": sizes.bit_operations,
        "draws": ens.draws,
        "training_epochs": epochs_of(recipe, name),
        "training_passes": own,
        "training_compute": own / headline if headline and known else None,
    }
