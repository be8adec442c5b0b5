"""`squint run RECIPE --seeds ...`: one study over several training seeds."""

from __future__ import annotations

from collections.abc import Sequence

from squint._checks import InputError

ABLATION = "ablation"
ABLATION_SEEDS = (0, 1, 2)
"""An ablation's answer is a verdict, and one seed gives none."""


def chosen_seeds(
    command: str, recipe: str, words: Sequence[str], seeds: tuple[int, ...], *, only: Sequence[str] = ()
) -> tuple[int, ...]:
    """Return the seeds that a study is run over; none: once, with the recipe's own seed.

    Args:
        command: "run" or "train".
        recipe: name of the recipe.
        words: what was written on the command line.
        seeds: of the option `--seeds`.
        only: of the option `--only`.

    Raises:
        squint.InputError: `--seeds` beside `--seed`, or for training alone; or several seeds of a study that
            is done in parts.
    """
    single = any(word == "--seed" or word.startswith("--seed=") for word in words)
    if seeds and single:
        raise InputError("--seed and --seeds exclude each other")
    if command != "run":
        if seeds:
            raise InputError(f"--seeds belongs to squint run; squint {command} takes one --seed")
        return ()
    if not seeds and not single and recipe.startswith(ABLATION):
        seeds = ABLATION_SEEDS
    if seeds and only:
        raise InputError("--only belongs to one seed, and several are to be run: name one with --seed")
    return seeds
