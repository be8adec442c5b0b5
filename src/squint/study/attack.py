"""Attacks on weights that are there: one file, or all of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from squint import data as D
from squint._checks import InputError, check_choice, check_number
from squint.attacks.gradients import AnyModel
from squint.ensemble import Ensemble
from squint.evaluation import RobustnessReport, evaluate
from squint.evaluation.budgets import PRESETS
from squint.evaluation.preflight import ceilings_of
from squint.evaluation.settings import NAMED, SEED_PROTOCOL, named_settings, radii_of
from squint.export import load
from squint.models import spec_of
from squint.study.config import RecipeConfig, SystemConfig
from squint.study.folder import read_config
from squint.study.identity import WEIGHTS, weights_digest
from squint.study.images import attacked
from squint.study.job import held_by_first
from squint.study.keeping import CHANGED, check_data, has_data
from squint.study.ladder import climb_weights
from squint.study.progress import Bar
from squint.study.published import kept_images
from squint.study.systems import placed
from squint.training.checkpoint import data_digest
from squint.zoo import home, resolved

ALONE = RecipeConfig(name="weights", curve=(), systems={"weights": SystemConfig()})
"""What holds for a file that is in no run folder: digits, the seed protocol at 5/255."""


@dataclass(frozen=True)
class AttackOptions:
    """Attack a weights file, or every weights file of a run folder, and print the records.

    Examples:
      squint attack runs/digits --eps 16/255 32/255
      squint attack runs/digits/weights/stochastic.safetensors --attacks fgsm pgd pgd-eot10
      squint attack runs/digits --attacks quick --images 100
      squint attack runs/digits/weights/stochastic.safetensors --members
      squint attack cifar10-small --attacks standard --eps 5/255 --images 100 --devices 2 --batch-size 10
      squint attack cifar10 --members --systems stochastic-information-member-2
      squint attack mine.safetensors --dataset folder:images --output records.json
    """

    dataset: str | None = None
    """Data set whose test images are attacked; default: the images of the run's recipe, or digits."""
    data_dir: str | None = None
    """Folder with the data set's files; default: the run's, or the cache."""
    eps: tuple[str, ...] = ()
    """L-infinity radii, as fractions such as 5/255; default: the run's (its headline's for the ladder)."""
    attacks: tuple[str, ...] = ()
    """pgd (the seed protocol), fgsm, pgd-eot10, or a budget of the ladder: quick, standard or exhaustive;
    default: the run's, or pgd."""
    images: int | None = None
    """Test images, from the first; default: as many as the run's, or 500."""
    draws: int | None = None
    """Draws S per prediction; default: the file's own."""
    resubmissions: int | None = None
    """Fresh deployments of every image that are scored; default: the run's, or the ladder's budget's
    and 64 for other attacks."""
    batch_size: int | None = None
    """Images attacked at once: fewer take less memory and lose less where an attack is stopped, and draw
    other noise; default: the run's, or 100."""
    devices: int = 1
    """Processes on this machine that share the batches, of which there should be several for each."""
    seed: int | None = None
    """Base of every random stream; default: the run's, or 0."""
    folder: Path | None = None
    """Where outcomes are kept, from which a stopped attack goes on, and the ladder's evidence; default: the
    run's for the ladder on its own images and draws, otherwise nowhere."""
    members: bool = False
    """Attack every member of an ensemble by itself as well, with the ensemble's number of draws."""
    systems: tuple[str, ...] = ()
    """Attack these alone: systems of a run, or members (NAME-member-1, ... with --members); default: all."""


def attack_weights(path: Path, options: AttackOptions, bar: Bar) -> list[RobustnessReport]:
    """Return one report per weights file.

    Args:
        path: a file from `squint.save`, a run folder or the name of a shipped model; the recipe of the run it
            is or lies in gives what `options` leaves open.
        options: what to attack, and how.
        bar: where progress goes.

    Raises:
        squint.InputError: no weights, weights for other images than these, or an option out of range.
    """
    recipe, files = targets(resolved(path))
    known = recipe or ALONE
    names = options.attacks or known.attack.attacks
    for name in names:
        check_choice("attacks", name, [*NAMED, *PRESETS])
    budgets = [PRESETS[name] for name in dict.fromkeys(names) if name in PRESETS]
    others = [name for name in names if name not in PRESETS]
    settings = named_settings(others) if others else []
    radii = radii_of(options.eps or (known.eps, *known.curve), settings or [SEED_PROTOCOL])
    heights = radii_of(options.eps or (known.eps,), [SEED_PROTOCOL]) if budgets else []
    images = check_number("images", _first(options.images, known.attack.images), 1, whole=True)
    resubmissions = known.attack.resubmissions if options.resubmissions is None else options.resubmissions
    check_number("resubmissions", 1 if resubmissions is None else resubmissions, 1)
    check_number("draws", _first(options.draws, 1), 1)
    check_number("seed", _first(options.seed, 0), 0, whole=True)
    batch_size = check_number(
        "batch_size", _first(options.batch_size, known.attack.batch_size), 1, whole=True
    )
    systems = [each for file in files for each in parts_of(file, members=options.members)]
    for name in options.systems:
        check_choice("systems", name, [each[1] for each in systems])
    systems = [each for each in systems if not options.systems or each[1] in options.systems]
    test, own = _images(options, recipe, files[0])
    for file, _, ens in systems:
        check_fit(file, ens, test)
    reports = []
    for file, name, ens in systems:
        named = {WEIGHTS: weights_digest(ens)}
        placed(ens, known)
        tier = recipe.systems[file.stem].tier if recipe else "A"
        for budget in budgets:
            report = climb_weights(
                name,
                ens,
                test,
                heights,
                budget,
                draws=options.draws,
                resubmissions=resubmissions,
                seed=_first(options.seed, known.seed),
                images=images,
                batch_size=batch_size,
                tier=tier,
                sources=_sources(recipe, file),
                folder=options.folder or (home(file.parent.parent) if own else None),
                bar=bar,
                ceilings=ceilings_of(options.dataset or known.dataset),
            )
            reports.append(_with_details(report, named))
        if not settings:
            continue
        bar.start(f"attack {name}", min(images, len(test)) * len(radii) * len(settings))
        kept = options.folder and options.folder / "attacks" / "-".join((name, *others))
        with nullcontext() if options.folder is None else held_by_first(options.folder, make=True):
            report = evaluate(
                ens,
                test,
                radii,
                settings,
                system=name,
                draws=options.draws,
                resubmissions=resubmissions,
                seed=_first(options.seed, known.seed),
                limit=images,
                batch_size=batch_size,
                tier=tier,
                folder=kept,
                progress=lambda done, _: bar.move(done),
            )
        reports.append(_with_details(report, named))
    return reports


def _with_details(report: RobustnessReport, more: dict[str, str]) -> RobustnessReport:
    records = tuple(replace(record, details=record.details | more) for record in report.records)
    return replace(report, records=records)


def parts_of(file: Path, *, members: bool) -> list[tuple[Path, str, Ensemble]]:
    """Return the ensemble of a file under its name and, where asked for, its members under their own."""
    whole = load(file)
    alone = whole.members if members and len(whole.members) > 1 else ()
    parts = [
        (file, f"{file.stem}-member-{place}", Ensemble([member], whole.draws).eval())
        for place, member in enumerate(alone, 1)
    ]
    return [(file, file.stem, whole), *parts]


def _images(options: AttackOptions, recipe: RecipeConfig | None, file: Path) -> tuple[D.ImageData, bool]:
    """Return the images to attack, and whether what is found on them belongs into the run's folder."""
    run, known = file.parent.parent, recipe or ALONE
    same = options.dataset in (None, known.dataset)
    kept = kept_images(run) if same and options.data_dir is None else None
    if kept is not None:
        if options.images is not None and options.images > len(kept):
            raise InputError(
                f"images is {options.images}; allowed: at most the {len(kept)} that {run.name} keeps, or "
                "more with --data-dir, where the whole data set lies"
            )
        return kept, options.draws is None
    splits = D.load(
        options.dataset or known.dataset,
        options.data_dir or known.data_dir,
        validation=known.validation if same else None,
        seed=known.seed,
    )
    test = attacked(splits, known) if same else splits.test
    if options.images is not None:
        check_number("images", options.images, 1, len(test), whole=True)
    if recipe is None or not same:
        return test, False
    digest: dict[str, str] = {known.attack.split: data_digest(test.images, test.labels)}
    if options.data_dir is None:
        check_data(run, digest, CHANGED)
    return test, options.draws is None and has_data(run, digest)


def _sources(recipe: RecipeConfig | None, file: Path) -> dict[str, AnyModel]:
    """Return the other systems of a run: the ladder tries attacks on them, too."""
    others = (file.with_stem(name) for name in (recipe.systems if recipe else ()) if name != file.stem)
    return {other.stem: placed(load(other), recipe or ALONE).eval() for other in others if other.is_file()}


def _first(given: int | None, default: int) -> int:
    return default if given is None else given


def targets(path: Path) -> tuple[RecipeConfig | None, Sequence[Path]]:
    """Return the recipe of the run that `path` is or lies in, if any, and the weights to attack."""
    if path.is_dir():
        recipe = read_config(path)
        files = [path / "weights" / f"{name}.safetensors" for name in recipe.systems]
        present = [file for file in files if file.is_file()]
        if not present:
            raise InputError(f"{path} has no weights yet: squint train or squint run --resume makes them")
        return recipe, present
    run = path.parent.parent
    if path.parent.name == "weights" and (run / "config.yaml").is_file():
        recipe = read_config(run)
        if path.stem in recipe.systems:
            return recipe, [path]
    return None, [path]


def check_fit(file: Path, ens: Ensemble, test: D.ImageData) -> None:
    """Refuse data of other channels or classes than the weights are for."""
    for member in ens.members:
        spec = spec_of(getattr(member, "network", member)) or {}
        for name, found in (("in_channels", test.shape[0]), ("num_classes", test.num_classes)):
            if spec.get(name, found) != found:
                raise InputError(
                    f"{file} is for images with {name} {spec[name]}; {test.name} has {found}: name another "
                    "data set with --dataset"
                )
