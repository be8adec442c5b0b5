"""One study over several training seeds, and what its systems differ by: a verdict for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from squint import _ranks
from squint._checks import InputError, check_choice, check_number, printable
from squint._files import write_json
from squint.evaluation.equivalence import MARGIN
from squint.evaluation.intervals import t_interval
from squint.study.config import RecipeConfig, config_hash
from squint.study.folder import check_folder
from squint.study.hypothesis import plan_of
from squint.study.hypothesis_verdict import judge
from squint.study.job import held_by_first, with_devices
from squint.study.pairs import CLEAN, Runs, accuracies_of, verdict_of
from squint.study.progress import Bar
from squint.study.run import run_study

FORMAT_VERSION = 1
_COSTS = ("parameters", "stored_bits", "bit_operations", "training_compute")


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
        squint.InputError: an argument is not allowed, or a folder cannot be used or is in use; before
            anything is run where that can be told.
    """
    seeds = [int(check_number("seeds", seed, 0, whole=True)) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds is {seeds}; allowed: one whole number or more, each once")
    reference = recipe.headline_system if reference is None else reference
    check_choice("reference", reference, recipe.systems)
    if len(recipe.systems) < 2:
        raise InputError("systems holds one system; allowed: the reference and one more, to be compared")
    check_number("margin", margin, 0.0, 1.0, open_low=True)
    plan = plan_of(recipe)
    with held_by_first(folder, make=True):
        runs = []
        for seed in seeds if _ranks.rank() == 0 else ():
            path = folder / f"seed-{seed}"
            there, alone = path.is_dir(), replace(with_devices(recipe), seed=seed)
            check_folder(path, alone, resume=resume and there, overwrite=overwrite and there)
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
        if plan is not None:
            attack, eps = runs[0][1]["headline_attack"], runs[0][1]["headline_eps"]
            verdicts["hypothesis"] = judge(plan, runs, attack, eps, margin)
        write_json(folder / "verdicts.json", verdicts)
    return verdicts


def compare(runs: Runs, reference: str, margin: float = MARGIN) -> dict[str, list[dict[str, Any]]]:
    """Return accuracies ("systems") and verdicts ("verdicts") over runs of one study with different seeds.

    Args:
        runs: each run's folder and the contents of its `results.json`.
        reference: system that all others are compared with.
        margin: largest difference that counts as none.
    """
    first = runs[0][1]
    own = [record for record in first["records"] if record["system"] == reference]
    settings = [(CLEAN, "0"), *((record["attack"], record["eps"]) for record in own)]
    systems, verdicts = [], []
    for attack, eps in settings:
        for facts in first["systems"]:
            name = facts["name"]
            values = accuracies_of(runs, name, attack, eps)
            systems.append(
                {
                    "system": name,
                    "title": facts["title"],
                    "tier": facts["tier"],
                    "attack": attack,
                    "eps": eps,
                    "accuracy": sum(values) / len(values),
                    "t_ci95": list(t_interval(values)) if len(values) > 1 else None,
                    "per_seed": values,
                    "training_draws": facts.get("training_draws"),
                    "training_seconds": _training_seconds(runs, name),
                    **{key: facts.get(key) for key in _COSTS},
                }
            )
            if name != reference:
                verdict = verdict_of(runs, name, reference, attack, eps, margin)
                place = {"system": name, "reference": reference, "attack": attack, "eps": eps}
                verdicts.append({**place, **verdict.to_json()})
    return {"systems": systems, "verdicts": verdicts}


def print_verdicts(verdicts: dict[str, Any], console: Console) -> None:
    """Print the contents of `verdicts.json`: a table per setting, each system beside the reference."""
    found = {(v["system"], v["attack"], v["eps"]): v for v in verdicts["verdicts"]}
    titles = {entry["system"]: printable(entry["title"]) for entry in verdicts["systems"]}
    seeds = ", ".join(str(seed) for seed in verdicts["seeds"])
    for attack, eps in dict.fromkeys((e["attack"], e["eps"]) for e in verdicts["systems"]):
        heading = "clean images" if attack == CLEAN else f"{attack} at eps {eps}"
        table = Table(title=Text(heading), title_justify="left")
        table.add_column("System", overflow="fold")
        for column in ("Tier", "Accuracy, % [t]", "Difference, points [90 %]", "Verdict"):
            table.add_column(column, justify="left" if column in ("Tier", "Verdict") else "right")
        shown = [e for e in verdicts["systems"] if (e["attack"], e["eps"]) == (attack, eps)]
        for entry in sorted(shown, key=lambda entry: float(entry["accuracy"]), reverse=True):
            v = found.get((entry["system"], attack, eps))
            cells = ("–", "reference") if v is None else (_points(v), v["verdict"])
            table.add_row(Text(titles[entry["system"]]), entry["tier"], _accuracy(entry), *cells)
        console.print(table)
    console.print(
        Text(
            f"Seeds {seeds}; reference: {titles[verdicts['reference']]}; margin "
            f"±{100 * verdicts['margin']:g} points. Equivalent: the interval lies inside the margin; "
            "helps or hurts: beyond it; undecided: more images or seeds are needed. [t]: 95 % interval "
            "of the mean over seeds."
        )
    )


def _accuracy(entry: dict[str, Any]) -> str:
    ends = entry.get("t_ci95")
    inside = f" [{100 * max(ends[0], 0):.1f}, {100 * min(ends[1], 1):.1f}]" if ends else ""
    return f"{100 * entry['accuracy']:.1f}{inside}"


def _points(verdict: dict[str, Any]) -> str:
    low, high = verdict["interval"]
    return f"{100 * verdict['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _training_seconds(runs: Runs, name: str) -> float:
    seconds = [s["training_seconds"] for _, results in runs for s in results["systems"] if s["name"] == name]
    return float(sum(seconds) / len(seconds))
