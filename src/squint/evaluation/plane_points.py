"""Points of the information plane: what members know of each other on images as a threat left them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from squint._checks import HasMemberLogits, InputError, InputTypeError, check_choice
from squint._random import derive_generator
from squint.evaluation.intervals import wilson
from squint.evaluation.machine import Fitting
from squint.evaluation.plane_estimators import ESTIMATORS, mean_information
from squint.evaluation.plane_profile import PlaneRow
from squint.evaluation.scoring import Scores, deployed_draws, score
from squint.evaluation.threats import Setting


def plane_rows(
    ens: HasMemberLogits,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    system: str,
    threat: str,
    setting: Setting,
    estimators: Sequence[str] = ("soft_label",),
    draws: int = 16,
    resubmissions: int = 16,
    bootstrap: int = 100,
    seed: int = 0,
    correct: Tensor | None = None,
    fitting: Fitting | None = None,
) -> list[PlaneRow]:
    """Return one row per estimator for images as a threat has left them, in batches with their labels.

    `correct` (n,) holds each image's share of correct deployments where it is known already (an `Outcome` has
    it); None scores the images here. `fitting` knows how much fits into memory. The ensemble must be in
    evaluation mode; the other arguments are those of `information_plane`.
    """
    check_estimators(estimators)
    fitting = fitting or Fitting()
    if correct is None:
        keys = (system, "plane", threat, setting.eps)
        how: dict[str, Any] = {"draws": deployed_draws(ens), "resubmissions": resubmissions, "seed": seed}

        def scored(chunk: int, x: Tensor, y: Tensor) -> Scores:
            return fitting.forward(ens, lambda: score(ens, x, y, keys=(*keys, chunk), **how))

        parts = [scored(chunk, *batch) for chunk, batch in enumerate(batches)]
        correct = torch.cat([part.correct for part in parts])
    labels = torch.cat([y for _, y in batches]).cpu()
    n, accuracy = len(labels), float(correct.mean())
    layers = _measured(ens, batches, draws, seed, {ESTIMATORS[name].layer for name in estimators}, fitting)
    rows = []
    for name in estimators:
        estimator = ESTIMATORS[name]
        generator = derive_generator(seed, "plane", system, threat, setting.eps, name)
        value, baseline, ci95 = mean_information(
            estimator, layers[estimator.layer], labels, generator=generator, bootstrap=bootstrap
        )
        rows.append(
            PlaneRow(
                system=system,
                threat=threat,
                eps=setting.eps,
                strength=setting.strength,
                information=value,
                baseline=baseline,
                information_ci95=ci95,
                accuracy=accuracy,
                accuracy_ci95=wilson(accuracy * n, n),
                n=n,
                estimator=name,
                layer=estimator.layer,
                draws=draws if estimator.layer == "predictions" else 1,
            )
        )
    return rows


def check_estimators(estimators: Sequence[str]) -> None:
    """Raise `InputError` unless there are estimators and all are known."""
    if not estimators:
        raise InputError(f"estimators is empty; allowed: one or more of {', '.join(ESTIMATORS)}")
    for name in estimators:
        check_choice("estimators", name, ESTIMATORS)


@torch.no_grad()
def _measured(
    ens: Any,
    batches: Sequence[tuple[Tensor, Tensor]],
    draws: int,
    seed: int,
    layers: set[str],
    fitting: Fitting,
) -> dict[str, list[Tensor]]:
    """Return each member's draw-averaged probabilities and, where asked for, one draw's features, on the CPU.

    The noise is the same at every setting, so that trajectories are smooth in it.
    """
    if "features" in layers and not hasattr(ens, "logits_and_features"):
        raise InputTypeError(
            f"estimators of features need logits_and_features; {type(ens).__name__} has none"
        )

    def asked(chunk: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        generator = derive_generator(seed, "plane draws", chunk)
        if "features" in layers:
            logits, seen = ens.logits_and_features(x, draws, generator=generator)
        else:
            logits, seen = ens.member_logits(x, draws, generator=generator), []
        return logits.double().softmax(-1).mean(0).cpu(), [z.float().cpu() for z in seen]

    def parts() -> Iterator[tuple[Tensor, list[Tensor]]]:
        for chunk, (x, _) in enumerate(batches):
            yield fitting.forward(ens, partial(asked, chunk, x))

    predictions, features = zip(*parts(), strict=True)
    return {
        "predictions": list(torch.cat(predictions, 1)),
        "features": [torch.cat(member) for member in zip(*features, strict=True)],
    }
