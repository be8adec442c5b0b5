"""`detect`: how well detectors of an ensemble hold, without and with an attack on the detector itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from squint import data as D
from squint._checks import InputError, check_choice, check_images, check_number, format_fraction
from squint._random import derive_generator
from squint.attacks.detector import agreement, agreements, lagrangian, orthogonal, selective
from squint.attacks.modes import evaluation_mode
from squint.attacks.noise import random_noise
from squint.ensemble import Ensemble
from squint.evaluation.detection.campaign import Attack, Campaign, Name, Progress
from squint.evaluation.detection.detector import Detector
from squint.evaluation.detection.judge import (
    FULL_EOT,
    FULL_STEPS,
    OTHERS,
    Points,
    Trial,
    Tried,
    judge,
    pooled,
)
from squint.evaluation.detection.kept import KeptPoints, digest
from squint.evaluation.detection.outputs import Observed
from squint.evaluation.detection.records import DetectionReport
from squint.evaluation.machine import Fitting, device_of
from squint.evaluation.settings import AttackSetting, named_settings, radii_of

ADAPTIVE: dict[str, Callable[..., Tensor]] = {
    "agreement": agreement,
    "selective": selective,
    "orthogonal": orthogonal,
    "lagrangian": lagrangian,
}
"""Attacks on the detector, in the order in which they run."""

CONTROL_DEPLOYMENTS = 16
"""Most deployments of each image of a control, of which only the separation is asked."""


def detect(
    ens: Ensemble,
    data: D.Data,
    calibration: D.Data,
    eps: float | str | Sequence[float | str] = 8 / 255,
    scores: Sequence[str] = ("predictive_information",),
    *,
    false_alarm_rate: float = 0.05,
    system: str = "model",
    draws: int | None = None,
    attacks: Sequence[str | AttackSetting] = ("pgd", "pgd-eot10"),
    adaptive: Sequence[str] = tuple(ADAPTIVE),
    steps: int = FULL_STEPS,
    step_size: float | None = None,
    eot: int | None = None,
    check_every: int = 10,
    resubmissions: int = 64,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 100,
    fit_data: D.Data | None = None,
    corruptions: Mapping[str, Tensor] | None = None,
    dataset: str | None = None,
    kept: KeptPoints | None = None,
    progress: Progress | None = None,
) -> DetectionReport:
    """Return how well detectors tell attacked from clean images, also when they are attacked themselves.

    Every detector is fitted on `calibration` and frozen. Attacks that do not know it are followed, for each
    detector, by attacks that do; each starts from the worst points so far. What follows no score runs once
    for all of them: the first attacks, and the walk of `agreement`. Every point is tried on every detector,
    so that those found for one score attack the others too ("on other scores"). Streams of attack, selection
    and score are disjoint: for each image the worst attack is chosen on one set of deployments and scored on
    another.

    Args:
        ens: the ensemble, with its present rounding; left as it was found.
        data: test images in [0, 1] and labels.
        calibration: clean images and labels, seen neither in training nor in `data`.
        eps: L∞ radius or radii, numbers or text such as "8/255".
        scores: detectors' scores, as in `Detector.fit`.
        false_alarm_rate: the detectors' stated rate, in (0, 1).
        system: name in the records.
        draws: draws S of one deployment; None: the ensemble's own.
        attacks: attacks that do not know the detector: "fgsm", "pgd", "pgd-eot10" or `AttackSetting`s.
        adaptive: attacks on the detector, keys of `ADAPTIVE`.
        steps: gradient steps of each of them; fewer than 1,000 leave the figure untrusted.
        step_size: their step; None: eps / 30.
        eot: their single draws per gradient, a multiple of `draws`; None: the least one that is 16 or more.
        check_every: steps between two of their iterates that are compared.
        resubmissions: fresh deployments R of each image that are scored.
        seed: base of every stream.
        limit: images used, from the first; None: all.
        batch_size: images attacked at once.
        fit_data: clean data for scores that are learned; see `Detector.fit`.
        corruptions: by name, the images of `data` (the first `limit`) corrupted; they are controls.
        dataset: name of the data set, for the comparison with published figures.
        kept: where each finished attack's images are kept, and read again from an evaluation with equal
            arguments that was stopped; its records then equal those of one that was not.
        progress: called with attacks done and attacks in all.

    Raises:
        squint.InputError: an argument is not allowed.
    """
    settings = named_settings(attacks)
    radii = radii_of(eps, settings)
    check_number("resubmissions", resubmissions, 1, whole=True)
    check_number("batch_size", batch_size, 1, whole=True)
    if step_size is not None:
        check_number("step_size", step_size, 0, open_low=True)
    if not scores:
        raise InputError("scores is empty; allowed: one score or more")
    for setting in settings:
        check_choice(f"norm of {setting.name}", setting.norm, ("linf",))
    for name in adaptive:
        check_choice("adaptive", name, ADAPTIVE)
    device = device_of(ens)
    images, labels = (tensor.to(device) for tensor in D.collect(data, limit))
    for name, corrupted in (corruptions or {}).items():
        check_images(corrupted, f"corruptions[{name!r}]")
        if corrupted.shape != images.shape:
            raise InputError(
                f"corruptions[{name!r}] has shape {tuple(corrupted.shape)}; allowed: {tuple(images.shape)}"
            )
    deployed = int(check_number("draws", ens.draws if draws is None else draws, 1, whole=True))
    observed = Observed(seed, deployed)
    detectors = {
        name: Detector.fit(
            ens,
            calibration,
            false_alarm_rate,
            score=name,
            draws=deployed,
            seed=seed,
            fit_data=fit_data,
            observed=observed,
        )
        for name in scores
    }
    single = -(-FULL_EOT // deployed) * deployed if eot is None else eot
    fitting = Fitting()
    study = Trial(detectors, images, labels, deployed, resubmissions, seed, fitting)
    budgets = {
        "plain": settings,
        "adaptive": sorted(adaptive),
        "budget": (steps, step_size, single, check_every, batch_size),
        "draws": (deployed, resubmissions),
        "seed": (seed, system),
        "ensemble": next(iter(detectors.values())).fingerprint,
    }
    same = {
        name: digest(budgets | {"rate": false_alarm_rate}, images, labels, detector.calibration)
        for name, detector in detectors.items()
    }
    unaware = digest(budgets, images, labels)
    blind = "agreement" in adaptive
    aimed = [key for key in ADAPTIVE if key in adaptive and key != "agreement"]
    total = len(radii) * (len(settings) + blind + len(detectors) * len(aimed))
    campaign = Campaign(ens, images, labels, system, seed, batch_size, fitting, kept, total, progress)
    budget: dict[str, Any] = {
        "steps": steps,
        "step_size": step_size,
        "eot": single,
        "check_every": check_every,
    }

    def unaware_of_all(setting: AttackSetting, radius: float) -> Tensor:
        def attack(
            x: Tensor, y: Tensor, _: Tensor | None, generator: torch.Generator, chunk: int | None
        ) -> list[Tensor]:
            return [setting.run(ens, x, y, radius, generator, chunk=chunk)]

        keys = setting.name, format_fraction(radius)
        return campaign.run(lambda _: attack, setting.eot, None, keys, [Name(keys, unaware)])[0]

    def agreeing(radius: float, start: Tensor) -> list[Tensor]:
        every = list(detectors.values())

        def against(places: Sequence[int]) -> Attack:
            targets = [every[place].deployed for place in places]

            def attack(
                x: Tensor, y: Tensor, begun: Tensor | None, generator: torch.Generator, chunk: int | None
            ) -> list[Tensor]:
                return agreements(
                    study.view,
                    x,
                    y,
                    detectors=targets,
                    eps=radius,
                    start=begun,
                    generator=generator,
                    chunk=chunk,
                    **budget,
                )

            return attack

        text = format_fraction(radius)
        names = [Name((name, "agreement", text), same[name]) for name in detectors]
        return campaign.run(against, single, start, ("agreement", text), names)

    def aware(kind: str, detector: Detector, radius: float, start: Tensor) -> Tensor:
        def attack(
            x: Tensor, y: Tensor, begun: Tensor | None, generator: torch.Generator, chunk: int | None
        ) -> list[Tensor]:
            return [
                ADAPTIVE[kind](
                    detector.view,
                    x,
                    y,
                    detector=detector.deployed,
                    eps=radius,
                    start=begun,
                    generator=generator,
                    chunk=chunk,
                    **budget,
                )
            ]

        keys = detector.score_name, kind, format_fraction(radius)
        names = [Name(keys, same[detector.score_name])]
        return campaign.run(lambda _: attack, single, start, keys, names)[0]

    records, curves, worst = [], [], {}
    with evaluation_mode(ens):
        clean = study.deploy(images, "clean")
        few = min(resubmissions, CONTROL_DEPLOYMENTS)
        shifted = {
            name: study.deploy(x.to(device), "corruption", name, count=few)
            for name, x in (corruptions or {}).items()
        }
        for radius in radii:
            text = format_fraction(radius)
            known = {}
            for s in settings:
                points = Points(unaware_of_all(s, radius), False, s.steps, s.eot)
                known[s.name] = study.tried(points, s.name, text)
            noise = random_noise(
                images, eps=radius, generator=derive_generator(seed, "detection noise", text)
            )
            controls = {"noise": study.deploy(noise, "noise", text, count=few), **shifted}
            own: dict[str, dict[str, Tried]] = {name: {} for name in detectors}
            if blind:
                left = agreeing(radius, study.worst(list(known.values())))
                for name, found in zip(detectors, left, strict=True):
                    points = Points(found, True, steps, single)
                    own[name]["agreement"] = study.tried(points, name, "agreement", text)
            for name, detector in detectors.items():
                for kind in aimed:
                    start = study.worst([*known.values(), *own[name].values()], detector)
                    points = Points(aware(kind, detector, radius, start), True, steps, single)
                    own[name][kind] = study.tried(points, name, kind, text)
            for name, detector in detectors.items():
                others = [each for other in own if other != name for each in own[other].values()]
                tried = {**known, **own[name], **({OTHERS: pooled(others, detector)} if others else {})}
                record, drawn, images_left = judge(
                    study,
                    detector,
                    tried,
                    clean,
                    controls,
                    system=system,
                    radius=radius,
                    dataset=dataset,
                    budget=budget | {"step_size": radius / 30 if step_size is None else step_size},
                    seconds=sum(campaign.seconds[name, kind, text] for kind in own[name]),
                )
                records.append(record)
                curves.append(drawn)
                worst[name, text] = images_left
    return DetectionReport(tuple(records), tuple(curves), worst, tuple(detectors.values()))
