"""Scoring what attacks left: every detector on the same fresh deployments, each image's worst attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from squint._checks import InputError, format_fraction
from squint._random import derive_generator
from squint.evaluation.detection.detector import Detector
from squint.evaluation.detection.outputs import deployments
from squint.evaluation.detection.records import AttackFigures, DetectionRecord, resubmitted
from squint.evaluation.detection.sanity import too_good
from squint.evaluation.detection.separation import Set, curve, histograms, separation
from squint.evaluation.intervals import wilson
from squint.evaluation.machine import Fitting
from squint.evaluation.records import Finding

REQUIRED = ("agreement", "selective", "orthogonal", "lagrangian")
"""Attacks on the detector without which a figure is untrusted."""

OTHERS = "on other scores"
"""Name of the points that attacks on detectors of other scores left; each image has the worst of them."""

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


@dataclass(frozen=True)
class Tried:
    """What an attack left, with the deployments that the worst is chosen on, and those that score it."""

    points: Points
    chosen: Deployed
    scored: Deployed


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
        views = (detector.view for detector in detectors.values())
        self.view = next((view for view in views if view is not self.ens), self.ens)

    def deploy(self, images: Tensor, purpose: str, *keys: object, count: int | None = None) -> Deployed:
        """Return the outcome of R fresh deployments (or `count`) of each image, for all detectors at once."""
        count = self.resubmissions if count is None else count
        return self.fitting.forward(self.ens, lambda: self._deploy(images, count, purpose, *keys))

    def tried(self, points: Points, *keys: object) -> Tried:
        """Return what an attack left with its deployments, on the streams of selection and of score."""
        outcomes = (self.deploy(points.images, purpose, *keys) for purpose in ("selection", "score"))
        return Tried(points, *outcomes)

    def _deploy(self, images: Tensor, count: int, purpose: str, *keys: object) -> Deployed:
        wrong: list[Tensor] = []
        scores: dict[str, list[Tensor]] = {name: [] for name in self.detectors}
        generator = derive_generator(self.seed, "detection", purpose, *keys)
        parts = deployments(self.view, images, draws=self.draws, count=count, generator=generator)
        done = 0
        for part in parts:
            flat = part.flatten(0, 1)
            for name, detector in self.detectors.items():
                found = detector.deployed.scores(flat).T.cpu()
                _check_finite(name, found, purpose)
                scores[name].append(found)
            labels = self.y[done : done + part.shape[3]]
            wrong.append(next(iter(self.detectors.values())).deployed.wrong(flat, labels).T.cpu())
            done += part.shape[3]
        return Deployed(torch.cat(wrong), {name: torch.cat(columns) for name, columns in scores.items()})

    def worst(self, tried: Sequence[Tried], detector: Detector | None = None) -> Tensor:
        """Return for each image the point that most often errs unflagged, or else errs: the next start.

        Args:
            tried: what the attacks so far have left.
            detector: which flags count; None: none.
        """
        rates = [_rate(each.chosen, detector) for each in tried]
        return _taken([each.points.images for each in tried], torch.stack(rates).argmax(0))


def _check_finite(score: str, found: Tensor, purpose: str) -> None:
    """Refuse scores that neither pass a threshold nor fail it: an attack could hide behind them."""
    broken = int((~found.isfinite()).sum())
    if broken:
        raise InputError(
            f"score {score!r} is NaN or infinite for {broken} of {found.numel()} deployments ({purpose}): "
            "the network's outputs there are no predictions"
        )


def _rate(outcome: Deployed, detector: Detector | None) -> Tensor:
    """Return (n,): how good a point is for the attacker."""
    rate = 1e-3 * outcome.wrong.double().mean(1)
    return rate if detector is None else rate + outcome.evades(detector).double().mean(1)


def _taken(tensors: Sequence[Tensor], place: Tensor) -> Tensor:
    """Return row i of the tensor (n, ...) that `place` (n,) names for it, for each i."""
    stacked = torch.stack(list(tensors))
    return stacked[place.to(stacked.device), torch.arange(len(place), device=stacked.device)]


def pooled(tried: Sequence[Tried], detector: Detector) -> Tried:
    """Return as one attack, for each image, what is chosen as the worst of several for a detector."""
    best = torch.stack([_rate(each.chosen, detector) for each in tried]).argmax(0)
    chosen, scored = (
        Deployed(
            _taken([outcome.wrong for outcome in outcomes], best),
            {name: _taken([o.scores[name] for o in outcomes], best) for name in outcomes[0].scores},
        )
        for outcomes in ([each.chosen for each in tried], [each.scored for each in tried])
    )
    return Tried(
        Points(
            _taken([each.points.images for each in tried], best),
            any(each.points.adaptive for each in tried),
            min(each.points.steps for each in tried),
            min(each.points.eot for each in tried),
        ),
        chosen,
        scored,
    )


def worst_of(tried: Sequence[Tried], detector: Detector) -> Tried:
    """Return the worse of `pooled` and of each attack alone, by the deployments that are scored.

    Choosing point by point on few deployments picks lucky ones among many: one attack alone can leave less
    than the choice does, and no figure may lie above that of an attack that was run. Choosing among attacks
    by their score errs to the other side, that of the attacker.
    """
    return max(
        [pooled(tried, detector), *tried],
        key=lambda each: float(each.scored.evades(detector).double().mean()),
    )


def judge(
    study: Trial,
    detector: Detector,
    tried: Mapping[str, Tried],
    clean: Deployed,
    controls: Mapping[str, Deployed],
    *,
    system: str,
    radius: float,
    dataset: str | None,
    budget: Mapping[str, float],
    seconds: float,
) -> tuple[DetectionRecord, dict[str, Any], Tensor]:
    """Return the record of one detector at one eps, its curves, and each image's worst points."""
    name, eps, n, seed = detector.score_name, format_fraction(radius), len(study.x), study.seed
    scored = {key: each.scored for key, each in tried.items()}
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
                tried[key].points.adaptive,
                tried[key].points.steps,
                tried[key].points.eot,
                float(outcome.wrong.double().mean()),
                evasion,
                wilson(evasion * n, n),
                separation(sets[key], right, seed=seed),
            )
        )

    plain = worst_of([each for each in tried.values() if not each.points.adaptive], detector)
    worst = worst_of([plain, *tried.values()], detector)
    evading, flagged = worst.scored.evades(detector), worst.scored.scores[name] > detector.threshold
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
        budget=budget,
        attacks=tuple(figures),
        controls={key: separation(held, right, seed=seed) for key, held in others.items()},
        non_adaptive_auroc=_lowest([f for f in figures if not f.adaptive]),
        adaptive_auroc=_lowest(figures),
        non_adaptive_accuracy_with_rejection=1 - float(plain.scored.evades(detector).double().mean()),
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
    return record, drawn, worst.points.images.cpu()


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
