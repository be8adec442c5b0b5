"""What a command works on: weights, the recipe of the run they lie in, and the data they are for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from squint import data as D
from squint._checks import InputError, check_choice
from squint.ensemble import Ensemble
from squint.evaluation.evidence_files import Evidence
from squint.export import load
from squint.study.attack import ALONE, check_fit, parts_of, targets
from squint.study.config import RecipeConfig
from squint.study.images import attacked
from squint.study.keeping import CHANGED, check_data, digests_of
from squint.study.published import kept_images
from squint.study.systems import placed
from squint.zoo import resolved


@dataclass(frozen=True)
class Target:
    """A system that was trained.

    Attributes:
        file: its weights.
        ens: what they hold, on the CPU.
        recipe: of the run that the file lies in; None outside of a run.
        part: what follows the file's name where `ens` is one of its members.
    """

    file: Path
    ens: Ensemble
    recipe: RecipeConfig | None
    part: str = ""

    @property
    def name(self) -> str:
        """Return the system's name."""
        return self.file.stem + self.part

    @property
    def known(self) -> RecipeConfig:
        """Return what gives the defaults: the run's recipe, or digits with the seed protocol."""
        return self.recipe or ALONE

    def placed(self) -> Ensemble:
        """Return the ensemble on the device that its recipe computes on."""
        return placed(self.ens, self.known)


def load_targets(path: Path) -> list[Target]:
    """Return the systems of a run folder, or the one of a weights file.

    Raises:
        squint.InputError: no run, no weights, or a file that cannot be read.
    """
    recipe, files = targets(resolved(path))
    return [Target(file, load(file), recipe) for file in files]


def load_target(path: Path, system: str | None = None) -> Target:
    """Return one system: that of a weights file, or the one called `system` of a run folder.

    Raises:
        squint.InputError: no such system, or several and none is named.
    """
    recipe, files = targets(resolved(path))
    names = [file.stem for file in files]
    if system is None and len(files) > 1:
        raise InputError(f"{path} has the systems {', '.join(names)}: name one with --system")
    if system is not None:
        check_choice("system", system, names)
    file = files[0 if system is None else names.index(system)]
    return Target(file, load(file), recipe)


def run_targets(run: Path) -> list[Target]:
    """Return the systems of a run folder, and of nothing else.

    Raises:
        squint.InputError: `run` is no run folder with weights.
    """
    run = resolved(run)
    if not run.is_dir():
        raise InputError(f"{run} is {'a file' if run.exists() else 'not there'}; needed: a run folder")
    return load_targets(run)


def member_targets(target: Target) -> list[Target]:
    """Return the members of a system as systems of their own, under the names that attacks give them."""
    return [
        replace(target, ens=ens, part=name.removeprefix(target.file.stem))
        for _, name, ens in parts_of(target.file, members=True)[1:]
    ]


def data_for(target: Target, dataset: str | None = None, data_dir: str | None = None) -> D.Splits:
    """Return the data of a system's run, split as in its training, or another data set that it fits.

    Raises:
        squint.InputError: an unknown data set, or images of other channels or classes, or files that hold
            other images than when the run was begun.
    """
    known = target.known
    own = dataset in (None, known.dataset)
    splits = D.load(
        dataset or known.dataset,
        data_dir or known.data_dir,
        validation=known.validation if own else None,
        seed=known.seed,
    )
    check_fit(target.file, target.ens, splits.test)
    if own and data_dir is None and target.recipe is not None:
        check_data(target.file.parent.parent, digests_of(splits), CHANGED)
    return splits


def attacked_images(target: Target, dataset: str | None = None, data_dir: str | None = None) -> D.ImageData:
    """Return the images that a system is attacked on: those that its published folder keeps, or its recipe's.

    Of another data set the test images; errors as of `data_for`.
    """
    kept = kept_images(target.file.parent.parent) if dataset is None and data_dir is None else None
    if kept is None:
        splits = data_for(target, dataset, data_dir)
        return attacked(splits, target.known) if dataset in (None, target.known.dataset) else splits.test
    check_fit(target.file, target.ens, kept)
    return kept


def radii_for(target: Target, eps: tuple[str, ...]) -> tuple[str, ...]:
    """Return the radii asked for, or else those of the system's recipe."""
    return eps or (target.known.eps, *target.known.curve)


def check_system(target: Target, evidence: Evidence, path: Path) -> None:
    """Refuse evidence that names another system of the run that a target lies in.

    Weights outside of a run may have been called anything.
    """
    if target.recipe is not None and evidence.system not in ("", target.name):
        raise InputError(f"{path} is evidence of {evidence.system}; allowed for {target.name}: its own")
