"""The whole study: train every system, attack it, record, report; continues where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from squint import data as D
from squint._checks import InputError, parse_fraction
from squint._files import read_json, write_json
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel, evaluation_mode
from squint.ensemble import Ensemble
from squint.evaluation import Record, RobustnessReport, evaluate
from squint.evaluation.information_plane import plane_rows
from squint.evaluation.ladder_report import ATTACK as LADDER
from squint.evaluation.ladder_report import ladder_report
from squint.evaluation.settings import named_settings, radii_of
from squint.evaluation.threats import Setting
from squint.export import load, save
from squint.report import write_report
from squint.study.config import RecipeConfig, config_hash, radius_text
from squint.study.folder import RunFolder, check_folder, read_results
from squint.study.progress import Bar, Silence
from squint.study.systems import build_system, describe_system, environment
from squint.training import Watcher, fit

FORMAT_VERSION = 1
_SHOWN = 64


@dataclass(frozen=True)
class Study:
    """A recipe, its data and its folder."""

    recipe: RecipeConfig
    data: D.Splits
    folder: RunFolder
    bar: Bar

    def train(self, name: str) -> tuple[Ensemble, float]:
        """Return a system's trained ensemble and its training time in seconds, from its files if possible."""
        weights, facts = self.folder.weights(name), self.folder.training(name)
        if weights.exists() and facts.exists():
            return load(weights), float(read_json(facts)["seconds"])
        recipe, system = self.recipe, self.recipe.systems[name]
        config = replace(
            recipe.train,
            objective=system.objective,
            draws=system.training_draws,
            seed=recipe.train.seed + recipe.seed,
        )
        ens = build_system(recipe, name, self.data.train)
        self.bar.start(f"train {name}", config.epochs * (len(self.data.train) // config.batch_size))
        note = {"text": ""}

        def epoch(entry: dict[str, Any]) -> None:
            accuracy = entry["validation_accuracy"]
            note["text"] = "" if accuracy is None else f"validation {accuracy:.1%}"
            self.folder.log(name, entry)

        watcher = Watcher(on_step=lambda step, _: self.bar.move(step, note["text"]), on_epoch=epoch)
        entries = fit(
            ens,
            self.data.train,
            config,
            validation=self.data.validation if len(self.data.validation) else None,
            checkpoint=self.folder.checkpoint(name),
            watcher=watcher,
        )
        for entry in entries:
            self.folder.log(name, entry)
        seconds = entries[-1]["seconds"] if entries else 0.0
        ens = ens.cpu()
        save(ens, weights)
        write_json(facts, {"seconds": seconds})
        self.folder.checkpoint(name).unlink(missing_ok=True)
        return ens, seconds

    def attack(self, name: str) -> dict[str, Any]:
        """Return a system's facts, records and plane points; attacks it unless that was done."""
        path = self.folder.outcome(name)
        if path.exists():
            stored: dict[str, Any] = read_json(path)
            return stored
        ens, seconds = self.train(name)
        recipe = self.recipe
        device = "cuda" if torch.cuda.is_available() and recipe.train.accelerator != "cpu" else "cpu"
        ens.to(device)
        test = self.data.test.subset(torch.arange(min(recipe.attack.images, len(self.data.test))))
        settings = named_settings(recipe.attack.attacks)
        radii = sorted(radii_of([recipe.eps, *recipe.curve], settings))
        self.bar.start(f"attack {name}", len(test) * len(radii) * len(settings))
        report = evaluate(
            ens,
            test,
            radii,
            settings,
            system=name,
            resubmissions=recipe.attack.resubmissions,
            seed=recipe.seed,
            batch_size=recipe.attack.batch_size,
            tier=recipe.systems[name].objective.tier,
            progress=lambda done, _: self.bar.move(done),
        )
        self._keep_examples(name, ens, test, report)
        records = [*report.records, *self._ladder(name, ens, test)]
        outcome = {
            "system": describe_system(name, recipe.systems[name], ens, seconds),
            "records": [record.to_json() for record in records],
            "plane": self._plane(name, ens, test, report),
        }
        write_json(path, outcome)
        return outcome

    def _ladder(self, name: str, ens: Ensemble, test: D.ImageData) -> Sequence[Record]:
        """Return the ladder's record at the headline's radius, where it is asked for; keep the evidence."""
        recipe = self.recipe
        if recipe.attack.ladder is None:
            return ()
        self.bar.start(f"{recipe.attack.ladder} ladder {name}", len(test))
        report = ladder_report(
            ens,
            test,
            [parse_fraction("eps", recipe.eps)],
            recipe.attack.ladder,
            system=name,
            draws=ens.draws,
            resubmissions=recipe.attack.resubmissions,
            seed=recipe.seed,
            limit=None,
            batch_size=recipe.attack.batch_size,
            tier=recipe.systems[name].objective.tier,
            sources=self._sources(name),
            folder=self.folder.path / "ladder" / name,
            progress=lambda done, _: self.bar.move(done),
            evidence=self.folder.evidence(name),
        )
        return report.records

    def _sources(self, name: str) -> dict[str, AnyModel]:
        """Return the study's other systems: attacks on one are tried on all."""
        others = (other for other in self.recipe.systems if other != name)
        return {other: self.train(other)[0].eval() for other in others}

    def _plane(self, name: str, ens: Ensemble, test: D.ImageData, report: RobustnessReport) -> list[Any]:
        """Return the system's points of the information plane; a single network has no pairs of members."""
        if len(ens.members) < 2:
            return []
        first = report.outcomes[0].attack
        settings = [(Setting("0", 0), test.float_images(), report.clean_correct)] + [
            (Setting(record.eps, outcome.eps), outcome.adversarial, outcome.correct)
            for record, outcome in zip(report.records, report.outcomes, strict=True)
            if outcome.attack == first
        ]
        device = next(ens.parameters()).device
        with evaluation_mode(ens):
            rows = [
                row
                for setting, x, correct in settings
                for row in plane_rows(
                    ens,
                    [(x[i : i + 256].to(device), test.labels[i : i + 256]) for i in range(0, len(x), 256)],
                    system=name,
                    threat=first,
                    setting=setting,
                    correct=correct,
                    seed=self.recipe.seed,
                )
            ]
        return [row.to_json() for row in rows]

    def _keep_examples(self, name: str, ens: Ensemble, test: D.ImageData, report: RobustnessReport) -> None:
        """Write the first images under the headline attack, and every image's outcome under every setting."""
        outcome = report.outcome(self.recipe.eps, report.outcomes[0].attack)
        shown = min(_SHOWN, len(test))
        adversarial = outcome.adversarial[:shown].mul(255).round().to(torch.uint8)
        self.folder.write_examples(
            name,
            {
                "index": np.arange(shown),
                "label": test.labels[:shown].numpy(),
                "clean": test.images[:shown].numpy(),
                "adversarial": adversarial.numpy(),
                "clean_votes": self._votes(name, ens, test.float_images()[:shown]),
                "adversarial_votes": self._votes(name, ens, outcome.adversarial[:shown]),
                "error_share": (1 - outcome.correct[:shown]).numpy(),
                "clean_correct": report.clean_correct.numpy(),
                "settings": np.array([f"{record.attack} {record.eps}" for record in report.records]),
                "correct": torch.stack([each.correct for each in report.outcomes]).numpy(),
            },
        )

    def _votes(self, name: str, ens: Ensemble, x: Tensor) -> np.ndarray[Any, Any]:
        """Return each member's own class (n, members), from its mean over the deployed draws."""
        generator = derive_generator(self.recipe.seed, "votes", name)
        device = next(ens.parameters()).device
        with torch.no_grad():
            logits = ens.member_logits(x.to(device), ens.draws, generator=generator)
        votes: np.ndarray[Any, Any] = logits.softmax(-1).mean(0).argmax(-1).T.cpu().numpy()
        return votes


def run_study(
    recipe: RecipeConfig,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    bar: Bar | None = None,
    attack: bool = True,
) -> dict[str, Any]:
    """Train every system of a recipe, attack all of them, and write results and report.

    Nothing is written before recipe, folder and data have been looked at. Work that a resumed folder already
    holds is not done again; what a run writes does not depend on how often it was stopped, times excepted.

    Args:
        recipe: the study.
        output: the run folder.
        resume: continue the run in this folder.
        overwrite: replace the run in this folder.
        bar: where progress goes.
        attack: False stops after training.

    Returns:
        The results, as `results.json` holds them; nothing without `attack`.

    Raises:
        squint.InputError: the folder, the data or the device do not fit.
    """
    started = time.perf_counter()
    check_folder(output, recipe, resume=resume, overwrite=overwrite)
    data = _data(recipe)
    with RunFolder(output, recipe, resume=resume, overwrite=overwrite) as folder:
        study = Study(recipe, data, folder, bar or Silence())
        for name in recipe.systems:
            study.train(name)
        if not attack:
            return {}
        outcomes = [study.attack(name) for name in recipe.systems]
        folder.write_results(_results(study, outcomes, time.perf_counter() - started))
        write_report(folder.path)
        return read_results(folder.path)


def _data(recipe: RecipeConfig) -> D.Splits:
    """Return the recipe's data, having checked what only they and this machine can tell."""
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
    return data


def _results(study: Study, outcomes: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    recipe = study.recipe
    versions, hardware = environment()
    return {
        "format_version": FORMAT_VERSION,
        "versions": versions,
        "hardware": hardware,
        "config_hash": config_hash(recipe),
        "recipe": recipe.name,
        "description": recipe.description,
        "dataset": recipe.dataset,
        "class_names": list(study.data.test.class_names),
        "headline_system": recipe.headline_system,
        "headline_eps": radius_text(recipe.eps),
        "headline_attack": LADDER if recipe.attack.ladder else named_settings(recipe.attack.attacks)[0].name,
        "seed": recipe.seed,
        "seconds": seconds,
        "systems": [outcome["system"] for outcome in outcomes],
        "records": [record for outcome in outcomes for record in outcome["records"]],
        "plane": [row for outcome in outcomes for row in outcome["plane"]],
    }
