"""Scoring what attacks left: every detector on the same fresh deployments, each image's worst attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from squint._checks import format_fraction
from squint._random import derive_generator
from squint.evaluation.detection.detector import Detector
from squint.evaluation.detection.outputs import WithFeatures, deployments
from squint.evaluation.detection.records import AttackFigures, DetectionRecord, resubmitted
from squint.evaluation.detection.sanity import too_good
from squint.evaluation.detection.scores import SCORES
from squint.evaluation.detection.separation import Set, curve, histograms, separation
from squint.evaluation.intervals import wilson
from squint.evaluation.machine import Fitting
from squint.evaluation.records import Finding

REQUIRED = ("agreement", "selective", "orthogonal", "lagrangian")
"""Attacks on the detector without which a figure is untrusted."""

FULL_STEPS, FULL_EOT = 1000, 16
"""Budget of an attack on a detector below which a figure is untrusted."""

TRIES = (1, 10, 100)
"""Submissions q of a patient attacker."""


@dataclass(frozen=True)
class Deployed:
    """Deployments of every image: missed labels (n, R) and each detector's scores (n, R)."""

    wrong: Tensor
    scores: Mapping[str, Tensor]

    def evades(self, detector: Detector) -> Tensor:
        """Return (n, R): wrong and not flagged."""
        return self.wrong & (self.scores[detector.score_name] <= detector.threshold)

    def set(self, score: str, members: Tensor) -> Set:
        """Return the deployments that `members` (n, R) marks, with their scores."""
        return Set(self.scores[score], members)


@dataclass(frozen=True)
class Points:
    """What an attack left: images and its budget."""

    images: Tensor
    adaptive: bool
    steps: int
    eot: int


class Trial:
    """The detectors of one ensemble, its images, and how both are asked."""

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        x: Tensor,
        y: Tensor,
        draws: int,
        resubmissions: int,
        seed: int,
        fitting: Fitting | None = None,
    ) -> None:
        self.detectors, self.x, self.y, self.fitting = detectors, x, y, fitting or Fitting()
        self.draws, self.resubmissions, self.seed = draws, resubmissions, seed
        first = next(iter(detectors.values()))
        self.ens, self.num_classes = first.ens, first.num_classes
        reads = any(name not in SCORES for name in detectors)
        self._view = WithFeatures(self.ens) if reads else self.ens

    def deploy(self, images: Tensor, purpose: str, *keys: object) -> Deployed:
        """Return the outcome of R fresh deployments of each image, for all detectors at once."""
        return self.fitting.forward(self.ens, lambda: self._deploy(images, purpose, *keys))

    def _deploy(self, images: Tensor, purpose: str, *keys: object) -> Deployed:
        wrong: list[Tensor] = []
        scores: dict[str, list[Tensor]] = {name: [] for name in self.detectors}
        generator = derive_generator(self.seed, "detection", purpose, *keys)
        parts = deployments(
            self._view, images, draws=self.draws, count=self.resubmissions, generator=generator
        )
        done = 0
        for part in parts:
            flat = part.flatten(0, 1)
            logits = flat[..., : self.num_classes]
            for name, detector in self.detectors.items():
                held = flat if detector.view is not self.ens else logits
                scores[name].append(detector.deployed.scores(held).T.cpu())
            labels = self.y[done : done + part.shape[3]]
            wrong.append(next(iter(self.detectors.values())).deployed.wrong(logits, labels).T.cpu())
            done += part.shape[3]
        return Deployed(torch.cat(wrong), {name: torch.cat(columns) for name, columns in scores.items()})

    def worst(self, detector: Detector, points: Mapping[str, Points], *keys: object) -> Tensor:
        """Return for each image the point that most often errs unflagged, or else errs: the next start."""
        rates = []
        for key, held in points.items():
            outcome = self.deploy(held.images, "start", *keys, key)
            evades, wrong = outcome.evades(detector).double(), outcome.wrong.double()
            rates.append(evades.mean(1) + 1e-3 * wrong.mean(1))
        best = torch.stack(rates).argmax(0).to(self.x.device)
        return torch.stack([held.images for held in points.values()])[best, torch.arange(len(self.x))]


def judge(
    study: Trial,
    detector: Detector,
    points: Mapping[str, Points],
    clean: Deployed,
    controls: Mapping[str, Deployed],
    *,
    system: str,
    radius: float,
    dataset: str | None,
    seconds: float,
) -> tuple[DetectionRecord, dict[str, Any], Tensor]:
    """Return the record of one detector at one eps, its curves, and each image's worst points."""
    name, eps, n, seed = detector.score_name, format_fraction(radius), len(study.x), study.seed
    alone = Trial({name: detector}, study.x, study.y, study.draws, study.resubmissions, seed, study.fitting)
    chosen_by = {key: alone.deploy(p.images, "selection", name, key, eps) for key, p in points.items()}
    scored = {key: alone.deploy(p.images, "score", name, key, eps) for key, p in points.items()}
    right = clean.set(name, ~clean.wrong)
    sets = {key: outcome.set(name, outcome.wrong) for key, outcome in scored.items()}
    others = {
        key: Set(outcome.scores[name], torch.ones_like(outcome.wrong)) for key, outcome in controls.items()
    }
    others["clean, misclassified"] = clean.set(name, clean.wrong)
    figures = []
    for key, outcome in scored.items():
        evasion = float(outcome.evades(detector).double().mean())
        figures.append(
            AttackFigures(
                key,
                points[key].adaptive,
                points[key].steps,
                points[key].eot,
                float(outcome.wrong.double().mean()),
                evasion,
                wilson(evasion * n, n),
                separation(sets[key], right, seed=seed),
            )
        )

    def union(keys: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return images, evading (n, R) and flagged (n, R) of each image's worst attack among `keys`."""
        rates = torch.stack([chosen_by[key].evades(detector).double().mean(1) for key in keys])
        best, rows = rates.argmax(0), torch.arange(n)
        images = torch.stack([points[key].images for key in keys])[best.to(study.x.device), rows]
        evading = torch.stack([scored[key].evades(detector) for key in keys])[best, rows]
        above = torch.stack([scored[key].scores[name] > detector.threshold for key in keys])[best, rows]
        return images, evading, above

    plain = [key for key, p in points.items() if not p.adaptive]
    images, evading, flagged = union(list(points))
    accuracy = 1 - float(evading.double().mean())
    alarms = clean.scores[name] > detector.threshold
    alarm_rate = float(alarms.double().mean())
    flags = _flags(figures, dataset, radius, accuracy)
    record = DetectionRecord(
        system=system,
        score=name,
        norm="linf",
        eps=eps,
        n=n,
        draws=study.draws,
        resubmissions=study.resubmissions,
        seed=seed,
        false_alarm_rate=detector.false_alarm_rate,
        calibration=len(detector.calibration),
        threshold=detector.threshold,
        clean_accuracy=float((~clean.wrong).double().mean()),
        clean_false_alarms=alarm_rate,
        clean_false_alarms_ci95=wilson(alarm_rate * n, n),
        clean_accepted_accuracy=float((~clean.wrong & ~alarms).double().mean()),
        attacks=tuple(figures),
        controls={key: separation(held, right, seed=seed) for key, held in others.items()},
        non_adaptive_auroc=_lowest([f for f in figures if not f.adaptive]),
        adaptive_auroc=_lowest(figures),
        non_adaptive_accuracy_with_rejection=1 - float(union(plain)[1].double().mean()),
        accuracy_with_rejection=accuracy,
        ci95=wilson(accuracy * n, n),
        persistent=resubmitted(evading.sum(1), flagged.sum(1), alarms.sum(1), study.resubmissions, TRIES),
        red_flags=flags,
        trusted=not flags,
        seconds=seconds,
    )
    everything = {"clean, correct": right, **others, **sets}
    drawn = {
        "system": system,
        "score": name,
        "eps": eps,
        "roc": {key: curve(held, right) for key, held in {**sets, **others}.items()},
        "histograms": histograms(everything),
    }
    return record, drawn, images.cpu()


def _lowest(figures: Sequence[AttackFigures]) -> float | None:
    return min((f.separation.auroc for f in figures if f.separation is not None), default=None)


def _flags(
    figures: Sequence[AttackFigures], dataset: str | None, radius: float, accuracy: float
) -> tuple[Finding, ...]:
    """Return what speaks against the headline: published figures, or attacks that are missing or weak."""
    flags = []
    finding = too_good(dataset, "linf", radius, accuracy)
    if finding is not None:
        flags.append(finding)
    ran = {f.attack: f for f in figures if f.adaptive}
    missing = [key for key in REQUIRED if key not in ran]
    if missing:
        flags.append(
            Finding("detector_not_attacked", f"attacks on the detector were not run: {', '.join(missing)}")
        )
    if any(f.steps < FULL_STEPS or f.eot < FULL_EOT for f in ran.values()):
        least = min(f.steps for f in ran.values()), min(f.eot for f in ran.values())
        flags.append(
            Finding(
                "detector_attack_budget",
                f"attacks on the detector had {least[0]} steps of {least[1]} draws; a figure needs "
                f"{FULL_STEPS:,} of {FULL_EOT}",
                {"steps": least[0], "eot": least[1]},
            )
        )
    return tuple(flags)
