"""One study over several training seeds, and what its systems differ by: a verdict for each of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from squint._checks import InputError, check_choice, check_number
from squint._files import write_json
from squint.evaluation.equivalence import MARGIN, Equivalence, equivalence, equivalence_of_seeds
from squint.evaluation.intervals import t_interval
from squint.study.config import RecipeConfig, config_hash
from squint.study.progress import Bar
from squint.study.run import run_study

FORMAT_VERSION = 1
CLEAN = "clean"


def run_seeds(
    recipe: RecipeConfig,
    seeds: Sequence[int],
    folder: Path,
    *,
    reference: str | None = None,
    margin: float = MARGIN,
    resume: bool = False,
    overwrite: bool = False,
    bar: Bar | None = None,
) -> dict[str, Any]:
    """Run a study once per seed and return what its systems differ by; also written to `verdicts.json`.

    Seed s has the run folder `seed-s`. A system differs from the reference by its accuracy on the same image
    after training from the same seed; every verdict is that of `squint.evaluation.equivalence`, "helps"
    meaning that the system is better than the reference by more than the margin. Without outcomes per image
    the seeds' means are compared.

    Args:
        recipe: the study; its own seed is replaced.
        seeds: whole numbers, each once.
        folder: where the runs' folders lie.
        reference: system that all others are compared with; None: the recipe's headline.
        margin: largest difference that counts as none, a fraction.
        resume: continue; seeds that are new are begun, finished ones only read.
        overwrite: replace earlier runs of these seeds.
        bar: where progress goes.

    Raises:
        squint.InputError: an argument is not allowed, or a folder cannot be used; before anything is run
            where that can be told.
    """
    seeds = [int(check_number("seeds", seed, 0, whole=True)) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds is {seeds}; allowed: one whole number or more, each once")
    reference = recipe.headline_system if reference is None else reference
    check_choice("reference", reference, recipe.systems)
    if len(recipe.systems) < 2:
        raise InputError("systems holds one system; allowed: the reference and one more, to be compared")
    check_number("margin", margin, 0.0, 1.0, open_low=True)
    runs = []
    for seed in seeds:
        path = folder / f"seed-{seed}"
        again = resume and path.is_dir()
        results = run_study(
            replace(recipe, seed=seed), path, resume=again, overwrite=overwrite and path.is_dir(), bar=bar
        )
        runs.append((path, results))
    verdicts = {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "dataset": recipe.dataset,
        "config_hash": config_hash(replace(recipe, seed=0)),
        "reference": reference,
        "seeds": seeds,
        "margin": margin,
        **compare(runs, reference, margin),
    }
    write_json(folder / "verdicts.json", verdicts)
    return verdicts


def compare(
    runs: Sequence[tuple[Path, dict[str, Any]]], reference: str, margin: float = MARGIN
) -> dict[str, list[dict[str, Any]]]:
    """Return accuracies ("systems") and verdicts ("verdicts") over runs of one study with different seeds.

    Args:
        runs: each run's folder and the contents of its `results.json`.
        reference: system that all others are compared with.
        margin: largest difference that counts as none.
    """
    first = runs[0][1]
    titles = {system["name"]: system for system in first["systems"]}
    own = [record for record in first["records"] if record["system"] == reference]
    settings = [(CLEAN, "0"), *((record["attack"], record["eps"]) for record in own)]
    systems, verdicts = [], []
    for attack, eps in settings:
        base = [_accuracy(results, reference, attack, eps) for _, results in runs]
        for name, facts in titles.items():
            values = [_accuracy(results, name, attack, eps) for _, results in runs]
            mean = sum(values) / len(values)
            systems.append(
                {
                    "system": name,
                    "title": facts["title"],
                    "tier": facts["tier"],
                    "attack": attack,
                    "eps": eps,
                    "accuracy": mean,
                    "t_ci95": list(t_interval(values)) if len(values) > 1 else None,
                    "per_seed": values,
                    "training_draws": facts.get("training_draws"),
                    "training_seconds": _training_seconds(runs, name),
                }
            )
            if name != reference:
                verdict = _verdict(runs, name, reference, (attack, eps), (values, base), margin)
                verdicts.append(
                    {
                        "system": name,
                        "reference": reference,
                        "attack": attack,
                        "eps": eps,
                        **verdict.to_json(),
                    }
                )
    return {"systems": systems, "verdicts": verdicts}


def print_verdicts(verdicts: dict[str, Any], console: Console) -> None:
    """Print the contents of `verdicts.json`: a table per setting, each system beside the reference."""
    found = {(v["system"], v["attack"], v["eps"]): v for v in verdicts["verdicts"]}
    titles = {entry["system"]: entry["title"] for entry in verdicts["systems"]}
    seeds = ", ".join(str(seed) for seed in verdicts["seeds"])
    for attack, eps in dict.fromkeys((e["attack"], e["eps"]) for e in verdicts["systems"]):
        heading = "clean images" if attack == CLEAN else f"{attack} at eps {eps}"
        table = Table(title=Text(heading), title_justify="left")
        table.add_column("System", overflow="fold")
        for column in ("Tier", "Accuracy, %", "Difference, points [90 %]", "Verdict"):
            table.add_column(column, justify="left" if column in ("Tier", "Verdict") else "right")
        for entry in verdicts["systems"]:
            if (entry["attack"], entry["eps"]) != (attack, eps):
                continue
            v = found.get((entry["system"], attack, eps))
            cells = ("–", "reference") if v is None else (_points(v), v["verdict"])
            table.add_row(Text(entry["title"]), entry["tier"], f"{100 * entry['accuracy']:.1f}", *cells)
        console.print(table)
    console.print(
        Text(
            f"Seeds {seeds}; reference: {titles[verdicts['reference']]}; margin "
            f"±{100 * verdicts['margin']:g} points. Equivalent: the interval lies inside the margin; "
            "helps or hurts: beyond it; undecided: more images or seeds are needed."
        )
    )


def _points(verdict: dict[str, Any]) -> str:
    low, high = verdict["interval"]
    return f"{100 * verdict['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _record(results: dict[str, Any], system: str, attack: str, eps: str) -> dict[str, Any]:
    for record in results["records"]:
        if record["system"] == system and (
            attack == CLEAN or (record["attack"], record["eps"]) == (attack, eps)
        ):
            found: dict[str, Any] = record
            return found
    raise InputError(f"the results of seed {results.get('seed')} hold no {attack} at eps {eps} on {system}")


def _accuracy(results: dict[str, Any], system: str, attack: str, eps: str) -> float:
    record = _record(results, system, attack, eps)
    return float(record["clean_accuracy" if attack == CLEAN else "robust_accuracy"])


def _training_seconds(runs: Sequence[tuple[Path, dict[str, Any]]], name: str) -> float:
    seconds = [s["training_seconds"] for _, results in runs for s in results["systems"] if s["name"] == name]
    return float(sum(seconds) / len(seconds))


def _verdict(
    runs: Sequence[tuple[Path, dict[str, Any]]],
    name: str,
    reference: str,
    setting: tuple[str, str],
    means: tuple[Sequence[float], Sequence[float]],
    margin: float,
) -> Equivalence:
    pairs = [(outcomes_of(path, name, *setting), outcomes_of(path, reference, *setting)) for path, _ in runs]
    known = [a - b for a, b in pairs if a is not None and b is not None and a.shape == b.shape]
    if len(known) == len(runs) and len({len(row) for row in known}) == 1:
        return equivalence(torch.stack(known), margin)
    images = min(int(_record(results, name, *setting)["n"]) for _, results in runs)
    differences = [a - b for a, b in zip(*means, strict=True)]
    return equivalence_of_seeds(differences, images, margin)


def outcomes_of(run: Path, system: str, attack: str, eps: str) -> Tensor | None:
    """Return each image's share of correct deployments (n,), or None where the run did not keep them.

    They lie in `examples/SYSTEM.npz`: `clean_correct` (n,), and `correct` (settings, n) in the order of
    `settings`, whose entries are written "pgd 5/255".

    Raises:
        squint.InputError: the file cannot be read.
    """
    path = run / "examples" / f"{system}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if attack == CLEAN:
                kept = file.get("clean_correct")
            else:
                names = file["settings"].tolist() if "settings" in file else []
                wanted = f"{attack} {eps}"
                kept = file["correct"][names.index(wanted)] if wanted in names else None
    except (OSError, ValueError, EOFError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return None if kept is None else torch.from_numpy(np.asarray(kept, dtype=np.float64))
