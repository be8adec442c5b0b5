"""`squint profile`: the adversarial information plane of a run's systems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from squint import _ranks
from squint._checks import InputError, check_number, printable
from squint._files import remove_folder, write_json, write_text
from squint.commands.targets import attacked_images, radii_for, run_targets
from squint.evaluation.information_plane import DEFAULT_THREATS, information_plane, trajectories
from squint.evaluation.plane_points import check_estimators
from squint.evaluation.plane_profile import PlaneProfile, PlaneRow, profile_of
from squint.evaluation.threats import PlaneBudget
from squint.study.progress import Bar
from squint.zoo import home


@dataclass(frozen=True)
class ProfileOptions:
    """Measure the information between members against accuracy, threat model by threat model.

    Writes plane.json and plane.csv into the run folder (runs/shipped/NAME for a shipped model), and every
    point into plane/ as it is done. The attacks' budgets are small: the accuracies belong to
    the plane and are no robustness figures.

    Examples:
      squint profile runs/digits
      squint profile runs/digits --resume
      squint profile runs/digits --threats linf-pgd noise-linf corruptions --images 200
      squint profile runs/digits --estimators soft_label renyi --eps 8/255 24/255
    """

    run: tyro.conf.Positional[Path]
    """Run folder; its ensembles of two members or more are measured."""
    threats: tuple[str, ...] = DEFAULT_THREATS
    """Threat models, such as linf-pgd, l2-pgd, square, transfer, noise-l2, corruptions, corruption:jpeg."""
    eps: tuple[str, ...] = ()
    """L-infinity radii, fractions such as 5/255; default: the run's. Those in L2 follow from them."""
    strengths: tuple[int, ...] = (1, 3, 5)
    """Strengths of the corruptions, of 1 to 5."""
    estimators: tuple[str, ...] = ("soft_label",)
    """Estimators of information."""
    images: int = 100
    """Test images, from the first."""
    draws: int = 16
    """Noise samples per member that a prediction averages before its information is measured."""
    resubmissions: int = 16
    """Fresh deployments of every image behind the accuracy."""
    seed: int | None = None
    """Base of every random stream; default: the run's."""
    devices: int = 1
    """Processes on this machine that share the work."""
    resume: bool = False
    """Go on where it was stopped, with the same options; without it, all is measured again."""

    @property
    def folder(self) -> Path:
        """Return the folder that is written into."""
        return home(self.run)


@dataclass(frozen=True)
class Planes:
    """The plane of a run.

    Attributes:
        profile: of all systems together.
        left_out: names of systems with a single network.
        titles: of the systems, by name.
    """

    profile: PlaneProfile
    left_out: tuple[str, ...]
    titles: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return self.profile.to_json() | {"left_out": list(self.left_out)}


def profile_run(options: ProfileOptions, bar: Bar) -> Planes:
    """Return the planes of a run's ensembles, pooled; also written to `plane.json` and `plane.csv`.

    Raises:
        squint.InputError: no run with an ensemble of two members or more, or an option out of range.
    """
    every = run_targets(options.run)
    pairs = [target for target in every if len(target.ens.members) > 1]
    left_out = tuple(target.name for target in every if target not in pairs)
    if not pairs:
        raise InputError(
            f"{options.run} has no system of two members or more ({', '.join(left_out)}): the plane needs "
            "members to compare"
        )
    test = attacked_images(pairs[0])
    # What is wrong is found before anything that is kept goes.
    check_number("images", options.images, 2, len(test), whole=True)
    for name in ("draws", "resubmissions"):
        check_number(name, getattr(options, name), 1, whole=True)
    check_estimators(list(options.estimators))
    for target in pairs:
        radii, elements = radii_for(target, options.eps), math.prod(test.shape)
        trajectories(options.threats, radii, options.strengths, elements, budget=PlaneBudget())
    folder = options.folder / "plane"
    if not options.resume:
        _ranks.first(lambda: remove_folder(folder))
    rows: list[PlaneRow] = []
    for target in pairs:
        begun = False

        def tell(done: int, total: int, name: str = target.name) -> None:
            nonlocal begun
            if not begun:
                bar.start(f"profile {name}", total)
                begun = True
            bar.move(done)

        profile = information_plane(
            target.placed(),
            test,
            options.threats,
            eps=radii_for(target, options.eps),
            strengths=options.strengths,
            estimators=options.estimators,
            system=target.name,
            draws=options.draws,
            resubmissions=options.resubmissions,
            seed=target.known.seed if options.seed is None else options.seed,
            limit=options.images,
            folder=folder / target.name,
            progress=tell,
        )
        rows += profile.rows
    titles = {
        target.name: printable(target.known.systems[target.name].title or target.name) for target in pairs
    }
    planes = Planes(profile_of(rows), left_out, titles)

    def write() -> None:
        write_json(options.folder / "plane.json", planes.to_json())
        write_text(options.folder / "plane.csv", planes.profile.to_csv())

    _ranks.first(write)
    return planes


def print_planes(planes: Planes, run: Path, console: Console) -> None:
    """Print every point, and what information says about accuracy."""
    rows = planes.profile.rows
    for system, estimator in dict.fromkeys((row.system, row.estimator) for row in rows):
        title = Text(f"{planes.titles[system]}, {estimator}, in nats")
        table = Table(box=None, padding=(0, 1, 0, 0), title=title, title_justify="left")
        table.add_column("Threat", overflow="fold")
        table.add_column("Size", no_wrap=True)
        for column in ("Information", "Shuffled", "Accuracy, %"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            if (row.system, row.estimator) == (system, estimator):
                low, high = row.accuracy_ci95
                table.add_row(
                    Text(row.threat),
                    row.eps,
                    f"{row.information:.4f}",
                    f"{row.baseline:.4f}",
                    f"{100 * row.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                )
        console.print(table)
    for entry in planes.profile.correlation:
        name = planes.titles.get(entry["system"], "all systems")
        value = (
            "none: one of them does not vary" if entry["spearman"] is None else f"{entry['spearman']:+.2f}"
        )
        if entry["spearman_ci95"] is not None:
            low, high = entry["spearman_ci95"]
            value += f" [{low:+.2f}, {high:+.2f}] over threat models"
        _line(
            console,
            f"Spearman correlation of information and accuracy, {name}, {entry['estimator']}: {value} "
            f"({entry['points']} points)",
        )
    for entry in planes.profile.leave_one_out:
        if entry["error"] is not None:
            _line(
                console,
                f"leaving out {entry['threat']}, {entry['estimator']}: accuracy missed by "
                f"{100 * entry['error']:.1f} points; by {100 * entry['constant_error']:.1f} without "
                f"information{_with_family(entry)}",
            )
    for name in planes.left_out:
        _line(console, f"left out: {name}, a single network; it needs copies trained from other seeds")
    _line(console, f"plane: {run / 'plane.json'}, {run / 'plane.csv'}")


def _with_family(entry: dict[str, Any]) -> str:
    if entry["family_error"] is None:
        return ""
    error, constant = (100 * entry[name] for name in ("family_error", "family_constant_error"))
    return f"; with its whole family left out ({entry['family']}) by {error:.1f}, and {constant:.1f}"


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
