"""`evaluate`: attack a model, score what the attack found on fresh draws, and record the figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from squint import _ranks
from squint import data as D
from squint._checks import HasMemberLogits, InputError, check_choice, check_number, format_fraction
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel, nan_reported
from squint.attacks.modes import evaluation_mode
from squint.evaluation.batch_outcomes import digest, model_digest
from squint.evaluation.budgets import PRESETS
from squint.evaluation.flags import excesses, rising
from squint.evaluation.frozen import frozen
from squint.evaluation.intervals import intervals_of, wilson
from squint.evaluation.kept_attacks import KeptAttacks, Part
from squint.evaluation.ladder_report import ladder_report
from squint.evaluation.machine import Fitting
from squint.evaluation.model_flags import nan_outputs, training_mode
from squint.evaluation.preflight import ceilings_of
from squint.evaluation.records import NO_ACTIVE_TESTS, Finding, Outcome, Record, RobustnessReport
from squint.evaluation.scoring import RESUBMISSIONS, Scores, deployed_draws, score
from squint.evaluation.settings import NAMED, SEED_PROTOCOL, AttackSetting, named_settings, radii_of
from squint.evaluation.sharding import sharded

TRIES = (1, 10, 100)
"""Resubmissions q of the persistent attacker."""

Progress = Callable[[int, int], None]
"""Called with images done and images in all, over every eps and attack."""


def evaluate(
    model: AnyModel,
    data: D.Data,
    eps: float | str | Sequence[float | str] = 5 / 255,
    attacks: str | Sequence[str | AttackSetting] = "seed",
    *,
    system: str = "model",
    draws: int | None = None,
    resubmissions: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 100,
    tier: str = "A",
    sources: Mapping[str, AnyModel] | None = None,
    ceilings: Mapping[float, float | None] | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> RobustnessReport:
    """Return how accurate the model is under attack, scored on draws that the attacker never saw.

    The model is attacked and scored in evaluation mode and left as it was found; parameter gradients and
    torch's global generator are not touched. Networks made of torch's and squint's own layers are attacked
    and scored as a faster copy of the same function, with gradients in float32
    (`squint.evaluation.frozen`). Attack and score streams are derived from `seed` by system, attack, eps
    and batch, so equal arguments give equal reports. Under torchrun all processes call this alike and share
    the batches; the report is that of one process. Where memory runs out, the draws of a gradient are held
    half at a time, and so on: the same draws of a `squint.Ensemble`, other ones of a model that draws
    anything else than seeds from its generator. A record's `seconds` are those of its batches, summed over
    processes and over the runs that computed them.

    Args:
        model: any callable returning logits (batch, classes); `member_logits` is used where it exists.
        data: images in [0, 1] and labels: a pair, an `ImageData` or an iterable of pairs.
        eps: L-infinity radius or radii, numbers or text such as "5/255".
        attacks: "seed" (the seed protocol), a list of "seed", "fgsm", "pgd-eot10" and `AttackSetting`s, or
            one of the ladder's budgets: "quick", "standard" (with the active tests) or "exhaustive".
        system: name in the records.
        draws: draws S per deployed prediction; None: the model's own `draws`. A model without
            `member_logits` is deployed as one call.
        resubmissions: fresh deployments R per image; persistent accuracy at q needs R >= 4q. None: the
            ladder's budget's own (400 for "standard"), 64 for other attacks.
        seed: base of every stream.
        limit: images used, from the first; None: all.
        batch_size: images attacked at once; part of the streams' keys.
        tier: training tier of the system, for the record: A, B or C, see `ObjectiveConfig.tier`.
        sources: further models that the ladder transfers from, by name.
        ceilings: further radii with the highest credible accuracy, for the ladder's preflight; None: those
            that are known for the data set, by its name.
        folder: of this evaluation's own, where outcomes are kept batch by batch, so that a stopped evaluation
            goes on; None: nowhere. A ladder leaves its worst images at the first radius in
            `folder/evidence/SYSTEM.npz`, for `squint verify` and `squint break`.
        progress: callback for a progress bar.

    Raises:
        squint.InputError: an argument is not allowed, or `folder` holds another evaluation's outcomes;
            TypeError (`InputTypeError`): data of another kind.
    """
    folder = None if folder is None else Path(folder)
    if folder is not None and Path(system).name != system:
        raise InputError(f"system is {system!r}; allowed with a folder: what can be a file's name")
    if isinstance(attacks, str):
        check_choice("attacks", attacks, [*NAMED, *PRESETS])
    settings = [] if isinstance(attacks, str) and attacks in PRESETS else named_settings(attacks)
    radii = radii_of(eps, settings or [SEED_PROTOCOL])
    if resubmissions is not None:
        check_number("resubmissions", resubmissions, 1, whole=True)
    check_number("batch_size", batch_size, 1, whole=True)
    check_choice("tier", tier, ("A", "B", "C"))
    draws = check_number("draws", deployed_draws(model) if draws is None else draws, 1, whole=True)
    if draws > 1 and not isinstance(model, HasMemberLogits):
        raise InputError(
            f"draws is {draws}; allowed: 1 for a model without member_logits, which is called once"
        )
    if not settings:
        return ladder_report(
            model,
            data,
            radii,
            str(attacks),
            system=system,
            draws=draws,
            resubmissions=resubmissions,
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            tier=tier,
            sources=sources,
            ceilings=_ceilings(data) if ceilings is None else ceilings,
            folder=folder,
            evidence=None if folder is None else folder / "evidence" / f"{system}.npz",
            progress=None if progress is None else lambda done, total, _: progress(done, total),
        )
    tries = RESUBMISSIONS if resubmissions is None else resubmissions
    images, labels = D.collect(data, limit)
    device = _device(model)
    chunks, fitting = -(-len(images) // batch_size), Fitting()
    total, done = len(images) * len(radii) * len(settings), 0
    kept = KeptAttacks(
        folder,
        lambda: {
            "system": system,
            "model": model_digest(model, images, device),
            "data": digest(images, labels),
            "radii": radii,
            "attacks": [asdict(setting) for setting in settings],
            "draws": draws,
            "resubmissions": tries,
            "seed": seed,
            "batch_size": batch_size,
        },
        chunks,
    )

    def part(chunk: int) -> D.Batch:
        rows = slice(chunk * batch_size, (chunk + 1) * batch_size)
        return images[rows].to(device), labels[rows].to(device)

    def scored(x: Tensor, y: Tensor, *keys: object) -> Scores:
        def run() -> Scores:
            return score(copy, x, y, draws=draws, resubmissions=tries, seed=seed, keys=keys)

        return fitting.forward(copy, run)

    def attacked(setting: AttackSetting, radius: float, chunk: int) -> Part:
        x, y = part(chunk)
        keys = (system, setting.name, format_fraction(radius), chunk)

        def run(held: int | None) -> Tensor:
            generator = derive_generator(seed, "attack", *keys)
            with nan_reported():
                return setting.run(copy, x, y, radius, generator, chunk=held)

        points = fitting.both(copy, run, setting.eot)
        return points.cpu(), scored(points, y, *keys)

    def known(turn: int, compute: Callable[[int], Part], chunk: int) -> tuple[Part, float]:
        found = kept.part(turn, chunk, lambda: compute(chunk))
        if turn and progress is not None:
            # The first process tells: by its next chunk the others have done those in between.
            progress(done + min((chunk + _ranks.count()) * batch_size, len(images)), total)
        return found

    records, outcomes = [], []
    flags = [NO_ACTIVE_TESTS, *([finding] if (finding := training_mode(model)) is not None else [])]
    with evaluation_mode(model):
        copy = frozen(model, precise=True)

        def unharmed(chunk: int) -> Part:
            return None, scored(*part(chunk), system, "clean", chunk)

        parts = sharded(chunks, partial(known, 0, unharmed), "clean images")
        clean = joined([scores for (_, scores), _ in parts])
        for turn, (setting, radius) in enumerate(product(settings, radii), 1):
            title = _title(setting.name, format_fraction(radius))
            found = sharded(chunks, partial(known, turn, partial(attacked, setting, radius)), title)
            done += len(images)
            scores = joined([scores for (_, scores), _ in found])
            record = _record(system, setting, radius, clean, scores, seed, tier)
            seconds = sum(taken for _, taken in found)
            own = nan_outputs({"clean images": clean, "attacked images": scores})
            records.append(replace(record, seconds=seconds, red_flags=(*flags, *own)))
            points = torch.cat([points for (points, _), _ in found if points is not None])
            outcomes.append(Outcome(setting.name, radius, points, scores.correct))
    flagged = _with_rises(records, outcomes, clean.correct)
    return RobustnessReport(system, tuple(flagged), tuple(outcomes), clean.correct)


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of all batches in one."""
    nan = [part.nan for part in parts if part.nan is not None]
    return Scores(
        torch.cat([part.errors for part in parts]),
        parts[0].resubmissions,
        torch.cat([part.single_errors for part in parts]),
        parts[0].draws,
        parts[0].random,
        torch.cat(nan) if len(nan) == len(parts) else None,
    )


def _record(
    system: str,
    setting: AttackSetting,
    eps: float,
    clean: Scores,
    scores: Scores,
    seed: int,
    tier: str,
) -> Record:
    n = len(scores.errors)
    return Record(
        system=system,
        attack=setting.name,
        preset=setting.preset,
        norm=setting.norm,
        eps=format_fraction(eps),
        steps=setting.steps,
        eot=setting.eot,
        restarts=setting.restarts,
        n=n,
        draws=scores.draws,
        seed=seed,
        clean_accuracy=clean.accuracy,
        clean_ci95=wilson(clean.accuracy * n, n),
        robust_accuracy=scores.accuracy,
        ci95=wilson(scores.accuracy * n, n),
        single_draw_accuracy=scores.single_draw_accuracy,
        persistent_accuracy=scores.persistent_accuracy(10),
        persistent={str(q): scores.persistent_accuracy(q) for q in TRIES},
        clean_persistent={str(q): clean.persistent_accuracy(q) for q in TRIES},
        tier=tier,
        details={
            "resubmissions": scores.resubmissions,
            "loss": setting.loss,
            "intervals": intervals_of(
                {
                    "single_draw_accuracy": scores.single_draw_accuracy,
                    **{f"persistent {q}": scores.persistent_accuracy(q) for q in TRIES},
                    **{f"clean persistent {q}": clean.persistent_accuracy(q) for q in TRIES},
                },
                n,
            ),
        },
    )


def _with_rises(records: Sequence[Record], outcomes: Sequence[Outcome], clean: Tensor) -> Iterator[Record]:
    """Flag records whose accuracy lies above that of a smaller radius, or of the clean images."""
    findings: list[Finding] = []
    if len(clean) > 1:
        comparisons = []
        for name in dict.fromkeys(outcome.attack for outcome in outcomes):
            same = sorted((o for o in outcomes if o.attack == name), key=lambda outcome: outcome.eps)
            named = [(_title(name, format_fraction(o.eps)), o.correct) for o in same]
            comparisons += rising("rises_with_eps", [("clean images", clean), *named])
        findings = excesses(comparisons)
    for record in records:
        title = _title(record.attack, record.eps)
        own = [finding for finding in findings if finding.measured["upper"] == title]
        yield replace(record, red_flags=(*record.red_flags, *own))


def _title(attack: str, eps: str) -> str:
    return f"{attack} at eps {eps}"


def _ceilings(data: D.Data) -> Mapping[float, float | None]:
    return ceilings_of(data.name) if isinstance(data, D.ImageData) else {}


def _device(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in [*model.parameters(), *model.buffers()]:
            return tensor.device
    return torch.device("cpu")
