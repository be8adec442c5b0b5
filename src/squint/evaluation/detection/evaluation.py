"""`detect`: how well detectors of an ensemble hold, without and with an attack on the detector itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from squint import _ranks
from squint import data as D
from squint._checks import InputError, check_choice, check_images, check_number, format_fraction
from squint._random import derive_generator
from squint.attacks.detector import agreement, lagrangian, orthogonal, selective
from squint.attacks.gradients import evaluation_mode
from squint.attacks.noise import random_noise
from squint.ensemble import Ensemble
from squint.evaluation.detection.detector import Detector
from squint.evaluation.detection.judge import FULL_EOT, FULL_STEPS, Points, Trial, judge
from squint.evaluation.detection.kept import KeptPoints, digest
from squint.evaluation.detection.records import DetectionReport
from squint.evaluation.machine import Fitting
from squint.evaluation.settings import AttackSetting, named_settings, radii_of
from squint.evaluation.sharding import sharded

ADAPTIVE: dict[str, Callable[..., Tensor]] = {
    "agreement": agreement,
    "selective": selective,
    "orthogonal": orthogonal,
    "lagrangian": lagrangian,
}
"""Attacks on the detector, in the order in which they run."""

Progress = Callable[[int, int], None]


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
    detector, by attacks that do; each starts from the worst points so far. Streams of attack, selection and
    score are disjoint: for each image the worst attack is chosen on one set of deployments and scored on
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
    if not scores:
        raise InputError("scores is empty; allowed: one score or more")
    for setting in settings:
        check_choice(f"norm of {setting.name}", setting.norm, ("linf",))
    for name in adaptive:
        check_choice("adaptive", name, ADAPTIVE)
    device = next(ens.parameters()).device
    images, labels = (tensor.to(device) for tensor in D.collect(data, limit))
    for name, corrupted in (corruptions or {}).items():
        check_images(corrupted, f"corruptions[{name!r}]")
        if corrupted.shape != images.shape:
            raise InputError(
                f"corruptions[{name!r}] has shape {tuple(corrupted.shape)}; allowed: {tuple(images.shape)}"
            )
    detectors = {
        name: Detector.fit(
            ens, calibration, false_alarm_rate, score=name, draws=draws, seed=seed, fit_data=fit_data
        )
        for name in scores
    }
    deployed = next(iter(detectors.values())).draws
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
    total = len(radii) * (len(settings) + len(detectors) * len(adaptive))
    done = 0

    def run(
        attack: Callable[..., Tensor], draws: int, start: Tensor | None, made_by: str, *keys: str
    ) -> tuple[Tensor, float]:
        """Return the images that an attack of so many draws left, and the seconds that it took."""
        nonlocal done
        names = (system, *keys)
        found = None if kept is None else _ranks.first(lambda: kept.read(names, made_by))
        if found is None:
            started = time.perf_counter()

            def attacked(chunk: int) -> Tensor:
                batch = slice(chunk * batch_size, (chunk + 1) * batch_size)
                begun = None if start is None else start[batch]

                def once(at_once: int | None) -> Tensor:
                    generator = derive_generator(seed, "detection attack", *names, chunk)
                    return attack(images[batch], labels[batch], begun, generator, at_once)

                return fitting.forward(ens, lambda: fitting.gradients(once, draws)).cpu()

            points = sharded(-(-len(images) // batch_size), attacked, " ".join(names))
            found = torch.cat(points), time.perf_counter() - started
            if kept is not None and _ranks.rank() == 0:
                kept.write(names, made_by, *found)
        done += 1
        if progress is not None:
            progress(done, total)
        return found[0].to(images), found[1]

    records, curves, worst = [], [], {}
    with evaluation_mode(ens):
        clean = study.deploy(images, "clean")
        shifted = {
            name: study.deploy(x.to(device), "corruption", name) for name, x in (corruptions or {}).items()
        }
        for radius in radii:
            radius_text = format_fraction(radius)

            def plain(setting: AttackSetting, radius: float = radius) -> Callable[..., Tensor]:
                return lambda x, y, _, generator, chunk: setting.run(
                    ens, x, y, radius, generator, chunk=chunk
                )

            known = {}
            for s in settings:
                left, _ = run(plain(s), s.eot, None, unaware, s.name, radius_text)
                known[s.name] = Points(left, False, s.steps, s.eot)
            noise = random_noise(
                images, eps=radius, generator=derive_generator(seed, "detection noise", radius_text)
            )
            controls = {"noise": study.deploy(noise, "noise", radius_text), **shifted}
            for name, detector in detectors.items():
                seconds = 0.0

                def aimed(
                    attack: Callable[..., Tensor], detector: Detector = detector, radius: float = radius
                ) -> Callable[..., Tensor]:
                    return lambda x, y, begun, generator, chunk: attack(
                        detector.view,
                        x,
                        y,
                        detector=detector.deployed,
                        eps=radius,
                        steps=steps,
                        step_size=step_size,
                        eot=single,
                        start=begun,
                        check_every=check_every,
                        chunk=chunk,
                        generator=generator,
                    )

                points = dict(known)
                alone = Trial({name: detector}, images, labels, deployed, resubmissions, seed, fitting)
                for attack in (key for key in ADAPTIVE if key in adaptive):
                    start = alone.worst(detector, points, name, attack, radius_text)
                    aim = aimed(ADAPTIVE[attack])
                    found, spent = run(aim, single, start, same[name], name, attack, radius_text)
                    points[attack] = Points(found, True, steps, single)
                    seconds += spent
                record, drawn, images_left = judge(
                    study,
                    detector,
                    points,
                    clean,
                    controls,
                    system=system,
                    radius=radius,
                    dataset=dataset,
                    seconds=seconds,
                )
                records.append(record)
                curves.append(drawn)
                worst[name, radius_text] = images_left
    return DetectionReport(tuple(records), tuple(curves), worst, tuple(detectors.values()))
