"""Two systems on the same images after training from the same seed: accuracies and verdicts over runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from squint._checks import InputError, describe
from squint.evaluation.arrays import read_npz
from squint.evaluation.equivalence import MARGIN, Equivalence, equivalence, equivalence_of_seeds

CLEAN = "clean"
"""Stands for the attack where clean images are meant."""

Runs = Sequence[tuple[Path, dict[str, Any]]]
"""Runs of one study with different seeds: each run's folder and the contents of its `results.json`."""


def record_of(results: dict[str, Any], system: str, attack: str, eps: str) -> dict[str, Any]:
    """Return a system's record of an attack at a radius as it is written, or any of its records for `CLEAN`.

    Raises:
        squint.InputError: there is none.
    """
    for record in results["records"]:
        if record["system"] == system and (
            attack == CLEAN or (record["attack"], record["eps"]) == (attack, eps)
        ):
            found: dict[str, Any] = record
            return found
    raise InputError(f"the results of seed {results.get('seed')} hold no {attack} at eps {eps} on {system}")


def accuracies_of(runs: Runs, system: str, attack: str, eps: str) -> list[float]:
    """Return a system's accuracy in every run, a fraction.

    Raises:
        squint.InputError: a run has no such record.
    """
    key = "clean_accuracy" if attack == CLEAN else "robust_accuracy"
    return [float(record_of(results, system, attack, eps)[key]) for _, results in runs]


def verdict_of(
    runs: Runs, system: str, reference: str, attack: str, eps: str, margin: float = MARGIN
) -> Equivalence:
    """Return what a system differs by from a reference, image by image where all runs kept the outcomes.

    Without them the seeds' means are compared.

    Raises:
        squint.InputError: a record is missing, or there is one run without outcomes per image.
    """
    pairs = [
        (outcomes_of(path, system, attack, eps), outcomes_of(path, reference, attack, eps))
        for path, _ in runs
    ]
    known = [a - b for a, b in pairs if a is not None and b is not None and a.shape == b.shape]
    if len(known) == len(runs) and len({len(row) for row in known}) == 1:
        return equivalence(torch.stack(known), margin)
    images = min(int(record_of(results, system, attack, eps)["n"]) for _, results in runs)
    own, others = (accuracies_of(runs, name, attack, eps) for name in (system, reference))
    return equivalence_of_seeds([a - b for a, b in zip(own, others, strict=True)], images, margin)


def outcomes_of(run: Path, system: str, attack: str, eps: str) -> Tensor | None:
    """Return each image's share of correct deployments (n,), or None where the run did not keep them.

    Raises:
        squint.InputError: the file cannot be read.
    """
    return settings_of(run, system).get(CLEAN if attack == CLEAN else f"{attack} {eps}")


def settings_of(run: Path, system: str) -> dict[str, Tensor]:
    """Return each image's share of correct deployments (n,) by setting, such as `CLEAN` and "pgd 5/255".

    They lie in `examples/SYSTEM.npz`: `clean_correct` (n,), and `correct` (settings, n) in the order of
    `settings`; those of the ladder in `ladder_correct` and `ladder_settings`. Without the file there are
    none.

    Raises:
        squint.InputError: the file cannot be read.
    """
    path = run / "examples" / f"{system}.npz"
    if not path.is_file():
        return {}
    file: dict[str, Any] = dict(read_npz(path))
    try:
        found = {CLEAN: file["clean_correct"]} if "clean_correct" in file else {}
        for prefix in ("", "ladder_"):
            names = file[f"{prefix}settings"].tolist() if f"{prefix}settings" in file else []
            if isinstance(names, list) and names:
                found |= dict(zip(names, file[f"{prefix}correct"], strict=True))
        return {name: torch.from_numpy(np.asarray(row, dtype=np.float64)) for name, row in found.items()}
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} is damaged: {describe(error)}") from None
