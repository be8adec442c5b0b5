"""`squint detect`: how well a run's ensembles notice attacks, also attacks on the detector itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from squint import _ranks
from squint import data as D
from squint._checks import InputError, check_choice, check_number, parse_fraction
from squint._files import read_json, write_json
from squint._random import derive_generator
from squint.attacks.detector import SEARCHES, TARGETS
from squint.commands.targets import Target, data_for, run_targets
from squint.data.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from squint.ensemble import varies
from squint.evaluation.detection import ADAPTIVE, SCORE_NAMES, detect
from squint.evaluation.detection.calibration import minimum_examples
from squint.evaluation.detection.kept import KeptPoints
from squint.evaluation.detection.records import DetectionReport
from squint.study.progress import Bar
from squint.zoo import home

FORMAT_VERSION = 1
EVERY = "all"
CHECKS, LEAST_STEPS = 40, 10
"""Most iterates of an attack that compete, and the fewest steps between two: comparing is dear."""


@dataclass(frozen=True)
class DetectOptions:
    """Fit detectors on a run's validation images and attack them, knowing them and not.

    Writes detection.json into the run folder (runs/shipped/NAME for a shipped model), the detectors into
    detectors/, and what every attack left into detection/. Fewer than 1,000 steps leave every figure
    untrusted.

    Examples:
      squint detect runs/digits
      squint detect runs/digits --eps 16/255 32/255 --steps 1000 --images 200
      squint detect runs/digits --steps 1000 --images 200 --resume
      squint detect runs/digits --scores predictive_information entropy --false-alarm-rate 0.02
      squint detect runs/digits --scores all --eot 4 --output runs/digits-scores
    """

    run: tyro.conf.Positional[Path]
    """Run folder, finished or not; its ensembles and its stochastic networks are measured."""
    systems: tuple[str, ...] = ()
    """Systems of the run; default: all that can disagree with themselves."""
    eps: tuple[str, ...] = ()
    """L-infinity radii, fractions such as 5/255; default: the run's headline radius."""
    scores: tuple[str, ...] = ("predictive_information",)
    """Scores of the detectors; "all" for every one."""
    false_alarm_rate: float = 0.05
    """Share of clean images that a detector may flag."""
    adaptive: tuple[str, ...] = tuple(ADAPTIVE)
    """Attacks on the detector."""
    steps: int = 100
    """Gradient steps of each of them."""
    eot: int | None = None
    """Draws per gradient of each of them, a multiple of the system's; default: 16 or the next such."""
    step_size: str | None = None
    """Length of their steps, a fraction such as 1/255; default: eps / 30."""
    images: int = 100
    """Test images, from the first."""
    draws: int | None = None
    """Draws S per prediction; default: each system's own."""
    resubmissions: int = 64
    """Fresh deployments of every image that are scored."""
    corruptions: tuple[str, ...] = CORRUPTIONS
    """Common corruptions that are controls."""
    strength: int = 3
    """Their strength, 1 to 5."""
    calibration: int | None = None
    """Validation images that calibrate the detectors, from the first; default: all."""
    data_dir: str | None = None
    """Folder of the data set's official files; default: the run's."""
    output: Path | None = None
    """Folder to write into; default: the run's."""
    seed: int | None = None
    """Base of every random stream; default: the run's."""
    devices: int = 1
    """Processes on this machine that share the work."""
    resume: bool = False
    """Go on where it was stopped; records of other systems, scores and radii stay as they are."""

    @property
    def folder(self) -> Path:
        """Return the folder that is written into."""
        return self.output or home(self.run)


@dataclass(frozen=True)
class Detection:
    """What `detection.json` holds: records and curves of all systems, and those left out of it."""

    records: tuple[dict[str, Any], ...]
    curves: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]
    printed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "format_version": FORMAT_VERSION,
            "records": list(self.records),
            "curves": list(self.curves),
            "left_out": list(self.left_out),
        }

    def lines(self) -> list[str]:
        """Return what is printed."""
        return [
            *self.printed,
            *(f"left out: {name}, a single network without noise" for name in self.left_out),
        ]

    def with_report(self, report: DetectionReport) -> Detection:
        """Return this with a report's records, which replace those of equal system, score and eps."""
        plain = report.to_json()
        new = {_place(record) for record in plain["records"]}
        return Detection(
            (*(r for r in self.records if _place(r) not in new), *plain["records"]),
            (*(c for c in self.curves if _place(c) not in new), *plain["curves"]),
            self.left_out,
            (*self.printed, str(report)),
        )


def detect_run(options: DetectOptions, bar: Bar) -> Detection:
    """Return how well a run's detectors hold; `detection.json` is written anew after every radius.

    Raises:
        squint.InputError: no run with anything to detect by, no validation images, or an option out of range.
    """
    _check(options)
    every = run_targets(options.run)
    able = [t for t in every if len(t.ens.members) > 1 or any(varies(member) for member in t.ens.members)]
    left_out = tuple(target.name for target in every if target not in able)
    if not able:
        raise InputError(
            f"{options.run} has no ensemble and no stochastic network ({', '.join(left_out)}): detection "
            "needs predictions that can disagree"
        )
    for name in options.systems:
        check_choice("system", name, [target.name for target in able])
    for target in able:
        deployed = target.ens.draws if options.draws is None else options.draws
        eot = deployed if options.eot is None else options.eot
        if (options.systems and target.name not in options.systems) or (eot > 0 and eot % deployed == 0):
            continue
        raise InputError(f"eot is {eot}; allowed for {target.name}: a multiple of its draws, {deployed}")
    splits = data_for(able[0], data_dir=options.data_dir)
    check_number("images", options.images, 1, len(splits.test), whole=True)
    if not len(splits.validation):
        raise InputError(f"{options.run} held out no validation images: a detector is calibrated on them")
    check_number(
        "calibration",
        len(splits.validation) if options.calibration is None else options.calibration,
        1,
        len(splits.validation),
        whole=True,
    )
    path = options.folder / "detection.json"
    found = Detection((), (), left_out, ())
    if options.resume:
        found = _ranks.first(lambda: kept_so_far(path, left_out) if path.is_file() else found)
    kept = KeptPoints(options.folder / "detection", reuse=options.resume)
    for target in able:
        if options.systems and target.name not in options.systems:
            continue
        for radius in options.eps or (target.known.eps,):
            report = _detected(target, splits, radius, options, kept, bar)
            found = found.with_report(report)
            _ranks.first(partial(_keep, options.folder, target.name, found, report))
    return found


def _check(options: DetectOptions) -> None:
    """Refuse values out of range before the data, which may have to be downloaded."""
    check_number("images", options.images, 1, whole=True)
    # One step for each of its searches, or of its targets.
    least = SEARCHES if "lagrangian" in options.adaptive else TARGETS
    check_number("steps", options.steps, least, whole=True)
    check_number("resubmissions", options.resubmissions, 1, whole=True)
    check_number("draws", 1 if options.draws is None else options.draws, 1, whole=True)
    check_number("strength", options.strength, STRENGTHS[0], STRENGTHS[-1], whole=True)
    minimum_examples(options.false_alarm_rate)
    for radius in options.eps:
        parse_fraction("eps", radius)
    if options.step_size is not None:
        check_number("step_size", parse_fraction("step_size", options.step_size), 0, open_low=True)
    for name in options.adaptive:
        check_choice("adaptive", name, ADAPTIVE)
    for name in _scores(options):
        check_choice("score", name, SCORE_NAMES)
    for kind in options.corruptions:
        check_choice("corruption", kind, CORRUPTIONS)


def _scores(options: DetectOptions) -> tuple[str, ...]:
    return SCORE_NAMES if options.scores == (EVERY,) else options.scores


def _keep(folder: Path, system: str, found: Detection, report: DetectionReport) -> None:
    """Write what is known of all systems so far, and the detectors of the last one."""
    write_json(folder / "detection.json", found.to_json())
    for detector in report.detectors:
        detector.save(folder / "detectors" / f"{system}.{detector.score_name}.safetensors")


def _detected(
    target: Target, splits: D.Splits, radius: str, options: DetectOptions, kept: KeptPoints, bar: Bar
) -> DetectionReport:
    begun = False

    def tell(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            bar.start(f"detect {target.name} {radius}", total)
            begun = True
        bar.move(done)

    seed = target.known.seed if options.seed is None else options.seed
    images, _ = D.collect(splits.test, options.images)
    clean = len(splits.validation) if options.calibration is None else options.calibration
    step = None if options.step_size is None else parse_fraction("step_size", options.step_size)
    return detect(
        target.placed(),
        splits.test,
        splits.validation.subset(torch.arange(clean)),
        radius,
        _scores(options),
        false_alarm_rate=options.false_alarm_rate,
        system=target.name,
        draws=options.draws,
        adaptive=options.adaptive,
        steps=options.steps,
        step_size=step,
        eot=options.eot,
        check_every=max(min(options.steps, LEAST_STEPS), options.steps // CHECKS),
        resubmissions=options.resubmissions,
        seed=seed,
        limit=len(images),
        batch_size=target.known.attack.batch_size,
        corruptions={
            f"{kind} {options.strength}": corrupt(
                images, kind, options.strength, derive_generator(seed, "detection corruption", kind)
            )
            for kind in options.corruptions
        },
        dataset=target.known.dataset,
        kept=kept,
        progress=tell,
    )


def kept_so_far(path: Path, left_out: tuple[str, ...]) -> Detection:
    """Return the records and curves of a `detection.json`.

    Raises:
        squint.InputError: the file holds something else.
    """
    plain = read_json(path)
    try:
        records, curves = plain["records"], plain["curves"]
        if not all(isinstance(part, str) for each in (*records, *curves) for part in _place(each)):
            raise TypeError
    except (KeyError, TypeError):
        raise InputError(f"{path} is no detection.json of this version; run without --resume") from None
    return Detection(tuple(records), tuple(curves), left_out, ())


def _place(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["system"], entry["score"], entry["eps"]
