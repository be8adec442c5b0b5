"""The images of a study, once what only they and this machine can tell has been checked."""

from __future__ import annotations

from pathlib import Path

import torch

from squint import data as D
from squint._checks import InputError
from squint.study.config import RecipeConfig


def attacked(splits: D.Splits, recipe: RecipeConfig) -> D.ImageData:
    """Return the part of a recipe's data that it attacks."""
    return splits.validation if recipe.attack.split == "validation" else splits.test


def images_of(recipe: RecipeConfig) -> D.Splits:
    """Return the recipe's data.

    Raises:
        squint.InputError: the recipe asks for what the data or this machine do not have.
    """
    if recipe.data_dir is not None and not Path(recipe.data_dir).expanduser().is_dir():
        raise InputError(f"data_dir is {recipe.data_dir!r}; allowed: a folder that exists")
    if recipe.train.accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("train.accelerator is 'cuda'; allowed on this machine: auto, cpu")
    data = D.load(recipe.dataset, recipe.data_dir, validation=recipe.validation, seed=recipe.seed)
    if recipe.train.batch_size > len(data.train):
        raise InputError(
            f"train.batch_size is {recipe.train.batch_size}; allowed: at most the {len(data.train)} "
            "training images"
        )
    shortest = min(data.train.shape[1:])
    if recipe.train.crop >= shortest:
        raise InputError(
            f"train.crop is {recipe.train.crop}; allowed: below the {shortest} pixels of an image's side"
        )
    if recipe.attack.split == "validation" and not len(data.validation):
        raise InputError("attack.split is 'validation'; this data set holds none out: set validation above 0")
    return data
