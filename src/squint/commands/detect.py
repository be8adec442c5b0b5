"""`squint detect`: how well a run's ensembles notice attacks, also attacks on the detector itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from squint._checks import InputError, check_number
from squint._files import write_json
from squint.commands.targets import data_for, run_targets
from squint.ensemble import varies
from squint.evaluation.detection import ADAPTIVE, detect
from squint.evaluation.detection.records import DetectionReport
from squint.study.progress import Bar


@dataclass(frozen=True)
class DetectOptions:
    """Fit detectors on a run's validation images and attack them, knowing them and not.

    Writes detection.json into the run folder. Fewer than 1,000 steps leave every figure untrusted.

    Examples:
      squint detect runs/digits
      squint detect runs/digits --eps 24/255 --steps 1000 --images 200
      squint detect runs/digits --scores predictive_information entropy --false-alarm-rate 0.02
    """

    run: tyro.conf.Positional[Path]
    """Run folder; its ensembles and its stochastic networks are measured."""
    eps: tuple[str, ...] = ()
    """L-infinity radii, fractions such as 5/255; default: the run's headline radius."""
    scores: tuple[str, ...] = ("predictive_information",)
    """Scores of the detectors."""
    false_alarm_rate: float = 0.05
    """Share of clean images that a detector may flag."""
    adaptive: tuple[str, ...] = tuple(ADAPTIVE)
    """Attacks on the detector."""
    steps: int = 100
    """Gradient steps of each of them."""
    images: int = 100
    """Test images, from the first."""
    draws: int | None = None
    """Draws S per prediction; default: each system's own."""
    resubmissions: int = 64
    """Fresh deployments of every image that are scored."""
    seed: int | None = None
    """Base of every random stream; default: the run's."""


@dataclass(frozen=True)
class Detection:
    """The detection reports of a run, by system, and the systems that cannot disagree with themselves."""

    reports: dict[str, DetectionReport]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data: records and curves of all systems."""
        parts = {name: report.to_json() for name, report in self.reports.items()}
        return {
            "records": [record for part in parts.values() for record in part["records"]],
            "curves": [{"system": name} | curve for name, part in parts.items() for curve in part["curves"]],
            "left_out": list(self.left_out),
        }

    def lines(self) -> list[str]:
        """Return what is printed."""
        left = [f"left out: {name}, a single network without noise" for name in self.left_out]
        return [*(str(report) for report in self.reports.values()), *left]


def detect_run(options: DetectOptions, bar: Bar) -> Detection:
    """Return how well a run's detectors hold; also written to `detection.json`.

    Raises:
        squint.InputError: no run with anything to detect by, no validation images, or an option out of range.
    """
    check_number("images", options.images, 1, whole=True)
    check_number("steps", options.steps, 3, whole=True)
    every = run_targets(options.run)
    able = [t for t in every if len(t.ens.members) > 1 or any(varies(member) for member in t.ens.members)]
    left_out = tuple(target.name for target in every if target not in able)
    if not able:
        raise InputError(
            f"{options.run} has no ensemble and no stochastic network ({', '.join(left_out)}): detection "
            "needs predictions that can disagree"
        )
    splits = data_for(able[0])
    if not len(splits.validation):
        raise InputError(f"{options.run} held out no validation images: a detector is calibrated on them")
    reports = {}
    for target in able:
        total = min(options.images, len(splits.test))
        begun = False

        def tell(done: int, total: int, name: str = target.name) -> None:
            nonlocal begun
            if not begun:
                bar.start(f"detect {name}", total)
                begun = True
            bar.move(done)

        reports[target.name] = detect(
            target.placed(),
            splits.test,
            splits.validation,
            options.eps or (target.known.eps,),
            options.scores,
            false_alarm_rate=options.false_alarm_rate,
            system=target.name,
            draws=options.draws,
            adaptive=options.adaptive,
            steps=options.steps,
            resubmissions=options.resubmissions,
            seed=target.known.seed if options.seed is None else options.seed,
            limit=total,
            batch_size=target.known.attack.batch_size,
            dataset=target.known.dataset,
            progress=tell,
        )
    found = Detection(reports, left_out)
    write_json(options.run / "detection.json", found.to_json())
    return found
