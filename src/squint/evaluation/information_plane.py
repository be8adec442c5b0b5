"""The adversarial information plane: information between members against accuracy, threat by threat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from squint import data as D
from squint._checks import HasMemberLogits, InputError, InputTypeError, check_number
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel
from squint.attacks.modes import evaluation_mode
from squint.data.corruptions import STRENGTHS
from squint.ensemble import Ensemble
from squint.evaluation.batch_outcomes import digest, model_digest
from squint.evaluation.machine import Fitting
from squint.evaluation.plane_kept import KeptRows
from squint.evaluation.plane_points import check_estimators, plane_rows
from squint.evaluation.plane_profile import PlaneProfile, PlaneRow, profile_of
from squint.evaluation.sharding import sharded
from squint.evaluation.threats import (
    CLEAN,
    PlaneBudget,
    Setting,
    Threat,
    check_strengths,
    named_threats,
)

DEFAULT_THREATS = (
    "linf-pgd",
    "l2-pgd",
    "apgd",
    "mora",
    "square",
    "transfer",
    "noise-linf",
    "noise-l2",
    "corruption:gaussian_noise",
    "corruption:impulse_noise",
    "corruption:gaussian_blur",
    "corruption:motion_blur",
    "corruption:contrast",
    "corruption:fog",
    "corruption:pixelate",
    "corruption:jpeg",
)
Progress = Callable[[int, int], None]
"""Called with the settings done and the settings in all."""


def information_plane(
    ens: HasMemberLogits,
    data: D.Data,
    threats: str | Threat | Sequence[str | Threat] = DEFAULT_THREATS,
    *,
    eps: str | float | Sequence[str | float] = ("2/255", "5/255", "8/255"),
    strengths: Sequence[int] = STRENGTHS,
    estimators: str | Sequence[str] = ("soft_label",),
    sources: Sequence[AnyModel] = (),
    budget: PlaneBudget | None = None,
    system: str = "model",
    draws: int = 16,
    resubmissions: int = 16,
    bootstrap: int = 100,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 100,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> PlaneProfile:
    """Return a trajectory for every threat model: information between members and accuracy, point by point.

    Attack, information and score have disjoint streams of noise, derived from `seed`; equal arguments give
    equal profiles. The model is asked in evaluation mode and left as it was found. Budgets are small: the
    accuracies belong to the plane, and are no robustness figures.

    Args:
        ens: an ensemble of two members or more; a single network enters as `copies([net_a, net_b])`.
        data: images in [0, 1] and labels: a pair, an `ImageData` or an iterable of pairs.
        threats: "linf-pgd", "l2-pgd", "apgd", "square", "mora", "transfer", "transfer-members", "noise-linf",
            "noise-l2" (both of full norm), "corruptions", "corruption:KIND" or a `Threat`; or only one of
            these.
        eps: L∞ radius or radii; the radii of L2 threats follow (see `Threat.settings`).
        strengths: of the corruptions, of 1 to 5.
        estimators: of `ESTIMATORS`; those of features need an ensemble with `logits_and_features`.
        sources: models that "transfer" starts from; none: the ensemble's own deterministic twin.
        budget: of the attacks; None: the defaults of `PlaneBudget`.
        system: name in the rows.
        draws: noise samples per member that a prediction averages before its information is measured.
        resubmissions: fresh deployments per image behind the accuracy.
        bootstrap: resamples behind each interval of the information.
        seed: base of every stream.
        limit: images used, from the first; None: all.
        batch_size: images attacked at once; part of the streams' keys.
        folder: of this plane's own, where every point's rows are kept, so that a stopped one goes on; a
            `Threat` that is not by name counts with its name alone. None: nowhere.
        progress: callback for a progress bar.

    Raises:
        squint.InputTypeError: a model without members; squint.InputError: a single member, or an argument
            that is not allowed, or `folder` holds another plane's rows.
    """
    for name, value in (("batch_size", batch_size), ("draws", draws), ("resubmissions", resubmissions)):
        check_number(name, value, 1, whole=True)
    check_number("bootstrap", bootstrap, 2, whole=True)
    measures = [estimators] if isinstance(estimators, str) else list(estimators)
    check_estimators(measures)
    images, labels = D.collect(data, limit)
    budget = budget or PlaneBudget()
    settings = trajectories(threats, eps, strengths, images[0].numel(), budget=budget, sources=sources)
    device = _device(ens)
    if len(images) < 2:
        raise InputError("data holds 1 image; allowed: 2 or more, to shuffle pairs of")
    batches = [
        (images[i : i + batch_size].to(device), labels[i : i + batch_size].to(device))
        for i in range(0, len(images), batch_size)
    ]
    fitting = Fitting()
    rows: list[PlaneRow] = []

    def found(threat: Threat | None, setting: Setting) -> list[PlaneRow]:
        def attacked(chunk: int) -> Tensor:
            assert threat is not None
            keys = (seed, "plane attack", system, threat.name, setting.eps, chunk)
            run = partial(threat.attack, ens, *batches[chunk], setting.size, fitting=fitting)
            return run(stream=lambda: derive_generator(*keys)).cpu()

        points = [x for x, _ in batches]
        if threat is not None:
            points = [x.to(device) for x in sharded(len(batches), attacked, f"{threat.name} of the plane")]
        return plane_rows(
            ens,
            list(zip(points, (y for _, y in batches), strict=True)),
            system=system,
            threat=CLEAN if threat is None else threat.name,
            setting=setting,
            estimators=measures,
            draws=draws,
            resubmissions=resubmissions,
            bootstrap=bootstrap,
            seed=seed,
            fitting=fitting,
        )

    with evaluation_mode(ens):
        _check_members(ens, images[:1].to(device))
        kept = KeptRows(
            folder,
            lambda: {
                "system": system,
                "model": model_digest(ens, images, device),
                "sources": [model_digest(source, images, _device(source)) for source in sources],
                "data": digest(images, labels),
                "settings": [[threat.name, asdict(setting)] for threat, setting in settings],
                "budget": asdict(budget),
                "estimators": measures,
                "draws": draws,
                "resubmissions": resubmissions,
                "bootstrap": bootstrap,
                "seed": seed,
                "batch_size": batch_size,
            },
        )
        for done, at in enumerate([(None, Setting("0", 0.0)), *settings]):
            rows += kept.rows(done, partial(found, *at))
            if progress is not None:
                progress(done + 1, len(settings) + 1)
    return profile_of(rows)


def trajectories(
    threats: str | Threat | Sequence[str | Threat],
    eps: str | float | Sequence[str | float],
    strengths: Sequence[int],
    elements: int,
    *,
    budget: PlaneBudget,
    sources: Sequence[AnyModel] = (),
) -> list[tuple[Threat, Setting]]:
    """Return every point of the plane but the clean one.

    Args:
        threats: as of `information_plane`.
        eps: as of `information_plane`.
        strengths: of the corruptions.
        elements: pixels times channels of an image.
        budget: of the attacks.
        sources: models that "transfer" starts from.

    Raises:
        squint.InputError: an unknown threat, no radius where one is needed, or one that is not allowed.
    """
    chosen = named_threats([threats] if isinstance(threats, str | Threat) else threats, budget, sources)
    radii = [eps] if isinstance(eps, str | int | float) else list(eps)
    if not radii and any(threat.norm for threat in chosen):
        raise InputError("eps is empty; allowed: one radius or more")
    check_strengths(strengths)
    return [(t, s) for t in chosen for s in t.settings(radii, strengths, elements)]


def copies(models: Sequence[nn.Module], draws: int = 4) -> Ensemble:
    """Return independently seeded copies of one network as an ensemble, its place in the plane.

    Args:
        models: the same network trained from two seeds or more.
        draws: noise samples per copy of the deployed prediction.

    Raises:
        squint.InputTypeError: no list; squint.InputError: a single copy, or two with equal weights.
    """
    if not isinstance(models, list | tuple):
        raise InputTypeError(f"copies needs a list of networks, got {type(models).__name__}")
    if len(models) < 2:
        raise InputError(
            f"copies got {len(models)} networks; allowed: 2 or more, trained from different seeds"
        )
    states = [model.state_dict() for model in models]
    for (i, a), (j, b) in combinations(enumerate(states), 2):
        if a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items()):
            raise InputError(f"copies {i} and {j} have equal weights; allowed: trained from different seeds")
    return Ensemble(list(models), draws)


def _check_members(ens: Any, x: Tensor) -> None:
    hint = "a single network enters as copies of it trained from different seeds: copies([net_a, net_b])"
    if not isinstance(ens, HasMemberLogits):
        raise InputTypeError(
            f"information_plane needs members to compare, through member_logits(x, draws); "
            f"{type(ens).__name__} has none; {hint}"
        )
    with torch.no_grad():
        members = ens.member_logits(x, 1, generator=derive_generator(0, "plane members")).shape[1]
    if members < 2:
        raise InputError(f"information_plane got {members} member; allowed: 2 or more; {hint}")


def _device(model: object) -> torch.device:
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device
