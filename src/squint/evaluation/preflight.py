"""Preflight: run before a robustness figure is believed, it looks for what no honest figure shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

import torch
from torch import Tensor, nn

from squint import data as D
from squint._checks import InputError, check_number, parse_fraction
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel, nan_reported
from squint.attacks.modes import evaluation_mode
from squint.evaluation.blind_spots import (
    BLIND_IMAGES,
    LOOKS,
    Influence,
    blind_spots,
    influence,
    unexplained_steps,
)
from squint.evaluation.flags import above_ceilings, excesses
from squint.evaluation.frozen import frozen
from squint.evaluation.gradient_flags import Fidelity, fidelity, unevenly_faithful, unfaithful, zero_gradients
from squint.evaluation.kept_parts import KeptParts
from squint.evaluation.machine import Fitting
from squint.evaluation.model_flags import batch_dependence, dead_widths, probability_outputs, training_mode
from squint.evaluation.preflight_runs import Probes, Runs, beaten_by, compare, outcomes_of
from squint.evaluation.records import Finding, finite
from squint.evaluation.repeat_flags import company, hidden_noise, other_forward
from squint.evaluation.scoring import deployed_draws
from squint.evaluation.white_box import Attack, WhiteBox

GREY = 128 / 255
"""A radius at which every image can be turned into one and the same."""
CIFAR_CEILINGS: Mapping[float, float | None] = {64 / 255: 0.05}
"""What no classifier of CIFAR keeps: 5 % at 64/255."""
ZERO_DRAWS = 8
"""Draws of the gradients that are looked for."""


def ceilings_of(dataset: str) -> Mapping[float, float | None]:
    """Return the ceilings that are known for a data set, by its name; none for most."""
    return CIFAR_CEILINGS if dataset in ("cifar10", "cifar100") else {}


def preflight(
    model: AnyModel,
    data: D.Data,
    eps: float | str = 5 / 255,
    *,
    seed: int,
    attack: Attack | None = None,
    sources: Sequence[AnyModel] = (),
    ceilings: Mapping[float, float | None] | None = None,
    draws: int | None = None,
    probes: Probes | None = None,
    found: Tensor | None = None,
    worst: Tensor | None = None,
    fitting: Fitting | None = None,
    kept: KeptParts | None = None,
    measured: dict[str, Any] | None = None,
) -> list[Finding]:
    """Return the red flags of a model and of attacks on it; an empty list says that none was found.

    Looks for accuracy that rises with eps, steps, EOT or restarts, or that FGSM, Square, SPSA or transfer
    lower further than the stronger attack (`flags.excesses`, one Holm family); accuracy beyond belief at
    large radii; missing, blocked or unfaithful gradients; dead widths; outputs that are probabilities or
    depend on the batch; a model in training mode. The model is attacked and scored in evaluation mode and
    left as it was found. Where memory runs out a batch begins again with half the draws at once and then half
    the images in a pass without graph, which changes no draw; a given attack that is no `WhiteBox` sees to
    its own.

    Args:
        model: any callable returning logits (batch, classes); `member_logits` is used where it exists.
        data: images in [0, 1] and labels.
        eps: L∞ radius of the figure.
        seed: base of every stream.
        attack: the white-box attack whose figure is judged, run at eps and at the ceilings' radii; None:
            `WhiteBox()`.
        sources: models to transfer from; without them transfer is left out.
        ceilings: further radii with the highest credible accuracy, such as `CIFAR_CEILINGS`; at 128/255 it is
            the largest class's share.
        draws: draws S per deployed prediction; None: the model's own `draws`.
        probes: what to spend.
        found: points (n, ...) that the white-box attack has found at eps already, in the order of `data`; it
            then runs no more at eps.
        worst: points (n, ...) of the figure itself, in the order of `data`, which no attack here may beat.
        fitting: what is known to fit into memory, and is told what is found; None: `probes.chunk`.
        kept: outcomes of attacks that were run before, and where new ones go; None: nowhere.
        measured: is given what was measured: shares that are left, by attack, and what gradients explain.

    Raises:
        squint.InputError: a value is out of range or there are fewer than 2 images.
    """
    probes = probes or Probes()
    eps = parse_fraction("eps", eps)
    draws = check_number("draws", deployed_draws(model) if draws is None else draws, 1, whole=True)
    images, labels = D.collect(data, probes.images)
    if len(images) < 2:
        raise InputError(f"preflight got {len(images)} image; allowed: 2 or more")
    device = _device(model)
    x, y = images.to(device), labels.to(device)
    fitting = Fitting(draws=probes.chunk) if fitting is None else fitting
    kept = kept or KeptParts()
    attack = attack or WhiteBox()
    in_training = training_mode(model)
    with evaluation_mode(model), nan_reported():
        run = Runs(frozen(model), x, y, seed, draws, probes, fitting, kept)
        white = run.attack(attack, eps, "white box") if found is None else run.at(found, eps)
        compared = compare(run, eps, white, sources)
        left = outcomes_of(compared)
        if worst is not None:
            figure = white if worst is found else run.at(worst, eps)
            compared += beaten_by(compared, left, figure)
            left["the ladder"] = figure
        limits = {GREY: None, **(ceilings or {})}
        outcomes = {radius: run.at_ceiling(attack, radius, ceiling) for radius, ceiling in limits.items()}
        # Not the first: data in some order would leave whole classes out.
        shuffled = torch.randperm(len(x), generator=derive_generator(seed, "preflight", "sample"))
        few = shuffled[: probes.batch_size].to(device)

        # Gradients are those of the copy: the attacks follow them, and they take a third of the time.
        def faithful(held: int | None) -> Fidelity:
            return fidelity(
                run.model, x[few], y[few], eps, seed=seed, draws=probes.fidelity_draws, chunk=held
            )

        def seen(held: int | None) -> Influence:
            some = few[:BLIND_IMAGES]
            return influence(
                run.model, x[some], y[some], eps, seed=seed, draws=probes.blind_draws, chunk=held
            )

        def absent(held: int | None) -> list[Finding]:
            return zero_gradients(
                run.model, x, y, seed=seed, draws=ZERO_DRAWS, chunk=held, batch_size=probes.batch_size
            )

        rises = _rises(kept, lambda: fitting.both(run.model, faithful, probes.fidelity_draws), x[few], y[few])
        unseen = _influence(kept, lambda: fitting.both(run.model, seen, probes.blind_draws), x[few], y[few])
        if measured is not None:
            measured["left"] = {name: float(share.mean()) for name, share in left.items()}
            measured["fidelity"] = {name: finite(value) for name, value in asdict(rises).items()}
            measured["influence"] = asdict(unseen)
        single = [
            in_training,
            fitting.forward(model, lambda: probability_outputs(model, x[few], seed=seed)),
            fitting.forward(model, lambda: batch_dependence(model, x[few], y[few], seed=seed))
            or fitting.forward(model, lambda: company(model, x[few], y[few], seed=seed)),
            fitting.forward(model, lambda: other_forward(model, x[few], seed=seed)),
            fitting.forward(model, lambda: hidden_noise(model, x[few], y[few], seed=seed)),
            unfaithful(rises),
            unevenly_faithful(rises),
            blind_spots(unseen),
            unexplained_steps(unseen),
        ]
        return [
            *(finding for finding in single if finding is not None),
            *dead_widths(model),
            *fitting.both(run.model, absent, ZERO_DRAWS),
            *above_ceilings(outcomes, labels, limits),
            *excesses(compared),
        ]


def _rises(kept: KeptParts, measure: Callable[[], Fidelity], *of: Tensor) -> Fidelity:
    def measured() -> Tensor:
        return torch.tensor(astuple(measure()), dtype=torch.float64)

    values = kept.part(measured, "preflight", "fidelity", of=of).tolist()
    return replace(Fidelity(*values[:-1]), images=int(values[-1]))


def _influence(kept: KeptParts, measure: Callable[[], Influence], *of: Tensor) -> Influence:
    def measured() -> Tensor:
        seen = measure()
        looks = (*seen.effects, *seen.explained, *seen.standard_errors)
        rest = (seen.others_explained, seen.steadiness, seen.steady_error, seen.images)
        return torch.tensor([*looks, *rest], dtype=torch.float64)

    *looks, others, steadiness, error, images = kept.part(
        measured, "preflight", "random steps", of=of
    ).tolist()
    effects, explained, errors = (tuple(looks[i * len(LOOKS) : (i + 1) * len(LOOKS)]) for i in range(3))
    return Influence(effects, explained, others, errors, int(images), steadiness, error)


def _device(model: object) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")
