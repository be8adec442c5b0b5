"""The whole study: train every system, attack it, record, report; continues where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from squint import _ranks
from squint import data as D
from squint._checks import InputError, check_choice, parse_fraction
from squint.attacks.gradients import AnyModel
from squint.ensemble import Ensemble
from squint.evaluation import RobustnessReport, evaluate
from squint.evaluation.budgets import Budget, named_budget
from squint.evaluation.ladder_report import ladder_report
from squint.evaluation.preflight import ceilings_of
from squint.evaluation.settings import AttackSetting, named_settings, radii_of
from squint.export import load, save
from squint.report import write_report
from squint.study.config import RecipeConfig, config_hash
from squint.study.costs import costs_of, epochs_of
from squint.study.folder import RunFolder, check_folder, read_results
from squint.study.hypothesis import HYPOTHESIS, Plan, plan_of
from squint.study.hypothesis_verdict import judge
from squint.study.images import attacked, images_of
from squint.study.job import bring_together, opened, with_devices
from squint.study.keeping import digests_of
from squint.study.outcomes import examples_of, plane_of, results_of
from squint.study.progress import Bar, Silence
from squint.study.systems import build_network, build_system, describe_system, placed
from squint.training import Watcher, fit
from squint.training.schedule import cycle_length

_SOURCES = ("full-precision", "adversarial-training")


@dataclass(frozen=True)
class Study:
    """A recipe, its data and its folder."""

    recipe: RecipeConfig
    data: D.Splits
    folder: RunFolder
    bar: Bar
    plan: Plan | None = None

    def train(self, name: str) -> tuple[Ensemble, float]:
        """Return a system's trained ensemble and its training time in seconds, from its files if possible."""
        done = self.folder.training_seconds(name)
        if done is not None:
            return load(self.folder.weights(name)), done
        if self.plan is not None and name in self.plan.parts:
            return self._put_together(name, self.plan.parts[name])
        recipe, system = self.recipe, self.recipe.systems[name]
        seed = recipe.train.seed + recipe.seed
        config = replace(
            recipe.train,
            epochs=epochs_of(recipe, name),
            objective=system.objective,
            draws=system.training_draws,
            seed=self.plan.seed(name, seed) if self.plan else seed,
        )
        ens = (
            self.plan.built(name, self.data.train)
            if self.plan
            else build_system(recipe, name, self.data.train)
        )
        total = config.epochs * (len(self.data.train) // config.batch_size)
        cycle = cycle_length(total, config.cycles)
        setup = system.setup(parse_fraction("eps", recipe.eps), cycle)
        self.bar.start(f"train {name}", total)
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
            system.defence.objective(setup),
            validation=self.data.validation if len(self.data.validation) else None,
            checkpoint=self.folder.checkpoint(name),
            watcher=watcher,
        )
        for entry in entries:
            self.folder.log(name, entry)
        seconds = entries[-1]["seconds"] if entries else 0.0
        ens = ens.cpu()
        self._keep(name, ens, seconds)
        return ens, seconds

    def _put_together(self, name: str, parts: Sequence[str]) -> tuple[Ensemble, float]:
        """Return an ensemble of members that are trained apart, and the time that they took together."""
        trained = [self.train(part) for part in parts]
        ens = Ensemble([each.members[0] for each, _ in trained], self.recipe.systems[name].draws).eval()
        seconds = sum(seconds for _, seconds in trained)
        self._keep(name, ens, seconds)
        return ens, seconds

    def _keep(self, name: str, ens: Ensemble, seconds: float) -> None:
        def keep() -> None:
            save(ens, self.folder.weights(name))
            self.folder.finish_training(name, seconds)

        _ranks.first(keep)

    def attack(self, name: str) -> dict[str, Any]:
        """Return a system's facts, records and plane points; attacks it unless that was done."""
        stored = self.folder.finished_attack(name)
        if stored is not None:
            return stored
        ens, seconds = self.train(name)
        recipe = self.recipe
        placed(ens, recipe)
        test = self._attacked()
        settings = self.settings(name)
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
            tier=recipe.systems[name].tier,
            folder=self.folder.attacks(name),
            progress=lambda done, _: self.bar.move(done),
        )
        ladder = self._ladder(name, ens, test)
        if _ranks.rank() == 0:
            self.folder.write_examples(name, examples_of(recipe, ens, test, report, ladder))
        records = [*report.records, *(ladder.records if ladder else ())]
        outcome = {
            "system": describe_system(name, recipe.systems[name], ens, seconds)
            | costs_of(recipe, name, ens, self.data.train),
            "records": [record.to_json() for record in records],
            "plane": plane_of(recipe, ens, test, report),
        }
        _ranks.first(lambda: self.folder.finish_attack(name, outcome))
        return outcome

    def settings(self, name: str) -> list[AttackSetting]:
        """Return the attacks on a system that come before the ladder."""
        settings = named_settings(self.recipe.attack.attacks)
        return [self.plan.setting(name, each) for each in settings] if self.plan else settings

    def budget(self, name: str) -> Budget | None:
        """Return what the ladder on a system may spend; None: it is not climbed."""
        if self.recipe.attack.ladder is None:
            return None
        budget = named_budget(self.recipe.attack.ladder)
        return self.plan.budget(name, budget) if self.plan else budget

    def _attacked(self) -> D.ImageData:
        """Return the images that the recipe attacks."""
        split = attacked(self.data, self.recipe)
        return split.subset(torch.arange(min(self.recipe.attack.images, len(split))))

    def _ladder(self, name: str, ens: Ensemble, test: D.ImageData) -> RobustnessReport | None:
        """Climb the ladder at the headline's radius, where it is asked for; keep the evidence."""
        recipe, budget = self.recipe, self.budget(name)
        if budget is None:
            return None
        limit = min(recipe.attack.ladder_images or len(test), len(test))
        # First, as it may train them, with a bar of their own.
        sources = self._sources(name)
        self.bar.start(f"{budget.name} on {name}", limit)
        return ladder_report(
            ens,
            test,
            [parse_fraction("eps", recipe.eps)],
            budget,
            system=name,
            draws=ens.draws,
            resubmissions=recipe.attack.resubmissions,
            seed=recipe.seed,
            limit=limit,
            batch_size=recipe.attack.batch_size,
            tier=recipe.systems[name].tier,
            sources=sources,
            ceilings=ceilings_of(recipe.dataset),
            folder=self.folder.path / "ladder" / name,
            progress=lambda done, _, note: self.bar.move(done, note),
            evidence=self.folder.evidence(name),
        )

    def _sources(self, name: str) -> dict[str, AnyModel]:
        """Return the study's other systems: attacks on one are tried on all.

        Among rivals the undefended and the adversarially trained network; none in a
        hypothesis, whose systems are members of each other, which the attacks try by themselves.
        """
        if self.plan is not None:
            return {}
        systems = self.recipe.systems
        rivals = any(system.rival for system in systems.values())
        others = [o for o in systems if o != name and (not rivals or systems[o].rival in _SOURCES)]
        return {other: placed(self.train(other)[0], self.recipe).eval() for other in others}


def run_study(
    recipe: RecipeConfig,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    bar: Bar | None = None,
    attack: bool = True,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Train every system of a recipe, attack all of them, and write results and report.

    Where the recipe has several devices, or under torchrun, every process runs this alike; the first one
    alone reads and writes the folder, but for the ladder's batches.

    Nothing is written before recipe, folder and data have been looked at. Work that a resumed folder already
    holds is not done again; what a run writes does not depend on how often it was stopped, times excepted.

    Args:
        recipe: the study.
        output: the run folder.
        resume: continue the run in this folder.
        overwrite: replace the run in this folder.
        bar: where progress goes.
        attack: False stops after training.
        only: the systems that are trained and attacked, and after them the networks that attacks are
            transferred from; the others are left for a later call. None named: all.

    Returns:
        The results, as `results.json` holds them, of all systems that are done; nothing without `attack`.

    Raises:
        squint.InputError: folder, data, device or a file to start from do not fit, or `only` names no system.
    """
    started = time.perf_counter()
    recipe = with_devices(recipe)
    if _ranks.rank() == 0:
        check_folder(output, recipe, resume=resume, overwrite=overwrite)
    plan = plan_of(recipe)
    chosen = _chosen(plan.recipe if plan else recipe, only)
    data = images_of(recipe)
    with torch.device("meta"):
        # A width that the network does not take is refused before the folder is made.
        build_network(recipe, data.train)
    for name in chosen:
        # A file that training cannot go on from is refused now, not after hours of other systems.
        trained = resume and (output / "weights" / f"{name}.safetensors").exists()
        if plan is None and recipe.systems[name].start is not None and not trained:
            build_system(recipe, name, data.train)
    bring_together(recipe)
    with opened(output, recipe, resume=resume, overwrite=overwrite, data=digests_of(data)) as folder:
        study = Study(plan.recipe if plan else recipe, data, folder, bar or Silence(), plan)
        for name in chosen:
            study.train(name)
        if not attack:
            return {}
        outcomes = {
            name: study.attack(name) if name in chosen else folder.finished_attack(name)
            for name in study.recipe.systems
        }

        def conclude() -> dict[str, Any]:
            seconds, seen = time.perf_counter() - started, folder.environments
            results = results_of(study.recipe, config_hash(recipe), seen, data.test, outcomes, seconds)
            if plan is not None:
                attack_name, eps = results["headline_attack"], results["headline_eps"]
                results["hypothesis"] = judge(plan, [(folder.path, results)], attack_name, eps)
            folder.write_results(results)
            write_report(folder.path)
            return read_results(folder.path)

        return _ranks.first(conclude)


def _chosen(recipe: RecipeConfig, only: Sequence[str]) -> list[str]:
    """Return the names of the systems to be done, in the recipe's order."""
    if only and recipe.kind == HYPOTHESIS:
        raise InputError("only is for comparisons; a hypothesis needs all of its systems")
    for name in only:
        check_choice("only", name, recipe.systems)
    return [name for name in recipe.systems if not only or name in only]
