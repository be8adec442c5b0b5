"""`squint verify`: saved adversarial images scored again on draws that nobody has seen."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from squint._checks import InputError, check_choice, check_number, format_fraction
from squint._files import check_output
from squint.commands.targets import (
    Target,
    attacked_images,
    check_system,
    load_target,
    member_targets,
    run_targets,
)
from squint.evaluation.evidence import Verification, verify
from squint.evaluation.evidence_files import load_evidence
from squint.export import load
from squint.study.hypothesis import plan_of
from squint.study.progress import Bar
from squint.zoo import resolved


@dataclass(frozen=True)
class VerifyOptions:
    """Score saved adversarial images again, on unseen draws and without attacking.

    Examples:
      squint verify runs/digits
      squint verify runs/digits --seed 7 --resubmissions 256
      squint verify evidence.npz --model runs/digits/weights/stochastic.safetensors
    """

    path: tyro.conf.Positional[Path]
    """Run folder, name of a shipped model, or one file of evidence (*.npz)."""
    model: Path | None = None
    """Weights that the file of evidence was found against; default: those of the run that it lies in."""
    dataset: str | None = None
    """Data set whose test images were attacked; default: the run's, or digits."""
    data_dir: str | None = None
    """Folder with the data set's files; default: the run's, or the cache."""
    seed: int | None = None
    """Of the score stream; default: a fresh one, which is printed."""
    draws: int | None = None
    """Draws S per prediction; default: the file's own."""
    resubmissions: int = 64
    """Fresh deployments of every image that are scored."""
    output: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Verified:
    """One system's evidence, scored again."""

    system: str
    eps: str
    result: Verification

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"system": self.system, "eps": self.eps} | asdict(self.result)

    def __str__(self) -> str:
        """Return one line for people."""
        r = self.result
        verdict = {
            True: "agrees",
            False: "DIFFERS: the figure does not hold on unseen draws",
            None: "of another number of draws than when it was saved, and not held against that",
        }[r.agrees]
        return (
            f"{self.system} at eps {self.eps}: {r.accuracy:.1%} [{r.ci95[0]:.1%}, {r.ci95[1]:.1%}] on seed "
            f"{r.seed}, {r.saved_accuracy:.1%} when it was saved; single draw {r.single_draw_accuracy:.1%}; "
            f"n={r.n}; {verdict}"
        )


def verify_path(options: VerifyOptions, bar: Bar) -> list[Verified]:
    """Return the evidence of a run's systems, or of one file, scored again.

    Raises:
        squint.InputError: no evidence, no weights for it, or evidence that does not fit the data.
    """
    check_output(options.output)
    check_number("seed", 0 if options.seed is None else options.seed, 0, whole=True)
    found = _evidence(options)
    seed = secrets.randbits(31) if options.seed is None else options.seed
    bar.start("verify", len(found))
    verified = []
    for done, (target, file) in enumerate(found, 1):
        evidence = load_evidence(file)
        check_system(target, evidence, file)
        result = verify(
            target.placed(),
            attacked_images(target, options.dataset, options.data_dir),
            evidence,
            seed=seed,
            draws=options.draws,
            resubmissions=options.resubmissions,
            batch_size=target.known.attack.batch_size,
        )
        verified.append(Verified(target.name, format_fraction(evidence.eps), result))
        bar.move(done)
    return verified


def _evidence(options: VerifyOptions) -> list[tuple[Target, Path]]:
    path = resolved(options.path)
    if path.suffix == ".npz":
        target = _beside(path) if options.model is None else _named(load_target(options.model), path)
        if target is None:
            raise InputError(f"{path} needs the weights that it was found against: name them with --model")
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file")
        return [(target, path)]
    if options.model is not None:
        raise InputError("--model goes with a file of evidence (*.npz); a run folder has its own weights")
    files = sorted((path / "evidence").glob("*.npz"))
    systems = _systems(path)
    if not files:
        raise InputError(f"{path} has no evidence yet: squint attack {path} --attacks quick makes it")
    for file in files:
        check_choice(f"system of {file}", file.stem, systems)
    return [(systems[file.stem], file) for file in files]


def _beside(path: Path) -> Target | None:
    """Return what the folder of a file of evidence holds under its name."""
    run = path.parent.parent
    if path.parent.name != "evidence":
        return None
    if (run / "config.yaml").is_file():
        return _systems(run).get(path.stem)
    weights = run / "weights" / f"{path.stem}.safetensors"
    return load_target(weights) if weights.is_file() else None


def _systems(run: Path) -> dict[str, Target]:
    """Return what a run may have evidence on, by name: systems, a hypothesis's parts, and their members."""
    found = run_targets(run)
    plan = None if found[0].recipe is None else plan_of(found[0].recipe)
    parts = () if plan is None else plan.recipe.systems.keys() - plan.source.systems.keys()
    files = [found[0].file.with_stem(name) for name in parts]
    found += [replace(found[0], file=file, ens=load(file)) for file in files if file.is_file()]
    members = [member for target in found for member in member_targets(target)]
    return {target.name: target for target in (*members, *found)}


def _named(target: Target, path: Path) -> Target:
    """Return the member that evidence says it is of, or the whole."""
    system = load_evidence(path).system
    return next((m for m in member_targets(target) if m.part and system.endswith(m.part)), target)
