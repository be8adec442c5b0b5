"""Active tests: can the attack break what is known to be breakable, and does spending more still help?"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint import data as D
from squint._checks import InputError, check_number, format_fraction, parse_fraction
from squint._random import derive_generator, derive_seed
from squint.attacks.gradients import AnyModel, Units, nan_reported
from squint.attacks.modes import evaluation_mode
from squint.evaluation.active_findings import (
    CONTROL_LEFT,
    ActiveTests,
    Gain,
    gained,
    judge_control,
    judge_gain,
    judge_planted,
    notes_on,
)
from squint.evaluation.control import noisy_control
from squint.evaluation.kept_parts import KeptParts
from squint.evaluation.ladder import RETIRED
from squint.evaluation.planted import plant
from squint.evaluation.scoring import RESUBMISSIONS, Scores, deployed_draws, score
from squint.evaluation.sharding import sharded
from squint.evaluation.white_box import Attack, WhiteBox

SURVIVORS = 200
CLEAN_IMAGES = 100
"""Images on which the control's undefended network must be right often enough to have something to lose."""
LARGEST_RADIUS = 0.5
"""Where the control's radius stops growing: all images can be made the same grey one."""


def active_tests(
    model: AnyModel,
    data: D.Data,
    eps: float | str = 5 / 255,
    *,
    seed: int,
    attack: Attack | None = None,
    doubled: Attack | None = None,
    undefended: nn.Module | None = None,
    images: int = 200,
    planted: int = 50,
    planted_batch: int = 50,
    planted_attack: Attack | None = None,
    batch_size: int = 100,
    draws: int | None = None,
    resubmissions: int = RESUBMISSIONS,
    found: Tensor | None = None,
    kept: KeptParts | None = None,
) -> ActiveTests:
    """Return whether the attack finds planted points and has converged, on this model.

    Args:
        model: any callable returning logits; planting needs a module with a last linear layer.
        data: images in [0, 1] and labels.
        eps: L∞ radius.
        seed: base of every stream.
        attack: the attack whose figure is to be trusted; None: `WhiteBox()` and its double.
        doubled: the same attack with twice the steps, restarts and draws.
        undefended: an undefended network for the control, the attack on it behind 8-bit input noise.
        images: images of the control, and of the gate where it has to find points, from the first.
        planted: images that a point is planted for; images that the planted copy gets wrong do not count.
        planted_batch: planted images attacked at once; 1 for an attack that drops images from its batch.
        planted_attack: the attack on them, where it is to drop none; None: `attack`.
        batch_size: images attacked at once.
        draws: draws S per deployed prediction; None: the model's own `draws`.
        resubmissions: deployments by which outcomes are scored.
        found: points (n, ...) that the attack has found already, in the order of `data`, for the convergence
            gate to start from at the first 200 survivors of all n; None: it is run for the gate.
        kept: parts that were done before, and where new ones go; None: nowhere.

    Raises:
        squint.InputError: a value is out of range.
    """
    eps = parse_fraction("eps", eps)
    if attack is None:
        attack, doubled = WhiteBox(), doubled or WhiteBox().doubled()
    check_number("planted", planted, 1, whole=True)
    check_number("planted_batch", planted_batch, 1, whole=True)
    check_number("images", images, 1, whole=True)
    all_x, all_y = D.collect(data, images if found is None else max(images, len(found)))
    device = (
        next((p.device for p in model.parameters()), all_x.device)
        if isinstance(model, nn.Module)
        else all_x.device
    )
    all_x, all_y = all_x.to(device), all_y.to(device)
    x, y = all_x[:images], all_y[:images]
    draws = deployed_draws(model) if draws is None else draws
    trial = _Trial(attack, eps, seed, draws, resubmissions, kept or KeptParts())
    findings, tried = [], len(x[:planted])
    model = _deployed(model, trial.draws)
    with evaluation_mode(model), nan_reported():
        finder = replace(trial, attack=planted_attack or attack)
        hits, total, most, steered = finder.find_planted(model, x[:planted], y[:planted], planted_batch)
        findings += judge_planted(hits, total, tried)
        gate = (x, y) if found is None else (all_x[: len(found)], all_y[: len(found)])
        gain = None if doubled is None else trial.gain(model, *gate, doubled, batch_size, found)
    findings += judge_gain(None if gain is None else gain.lost)
    noisy = bare = radius = None
    if undefended is not None:
        with evaluation_mode(undefended), nan_reported():
            noisy, bare, radius = trial.control(undefended, x, y, batch_size)
            clean = float(
                trial.score(undefended, x[:CLEAN_IMAGES], y[:CLEAN_IMAGES], "control", "clean").correct.mean()
            )
        findings += judge_control(noisy, bare, radius, clean)
    return ActiveTests(
        hits,
        total,
        tried,
        most,
        None if gain is None else gain.lost,
        noisy,
        not findings,
        tuple(findings),
        bare,
        None if radius is None else format_fraction(radius),
        notes_on(most, trial.draws),
        steered,
        *((None, None, None) if gain is None else (gain.error, gain.survivors, gain.tested)),
    )


def _deployed(model: AnyModel, draws: int) -> AnyModel:
    """Return the model, its parts shared, with `draws` as its own: attacks then select as it is deployed."""
    if not isinstance(model, nn.Module) or getattr(model, "draws", None) == draws:
        return model
    alike = copy.copy(model)
    cast(Any, alike).draws = draws
    return cast(AnyModel, alike)


@dataclass(frozen=True)
class _Trial:
    """One attack under test, with what scoring needs."""

    attack: Attack
    eps: float
    seed: int
    draws: int
    resubmissions: int
    kept: KeptParts

    def score(self, model: AnyModel, x: Tensor, y: Tensor, *keys: object) -> Scores:
        return score(
            model,
            x,
            y,
            draws=self.draws,
            resubmissions=self.resubmissions,
            seed=self.seed,
            keys=("active", *keys),
        )

    def points(self, attack: Attack, model: AnyModel, x: Tensor, y: Tensor, *keys: object) -> Tensor:
        return attack(model, x, y, self.eps, derive_generator(self.seed, "active", *keys))

    def find_planted(self, model: AnyModel, x: Tensor, y: Tensor, batch: int) -> tuple[int, int, int, int]:
        """Return planted points that were found, sound ones, the most draws, and how many were steered."""
        if not isinstance(model, nn.Module):
            return 0, 0, self.draws, 0
        with torch.no_grad():
            num_classes = Units(model, y[:1], 1).logits(x[:1], derive_seed(self.seed, "classes")).shape[-1]

        def part_found(chunk: int) -> tuple[int, ...] | None:
            rows = slice(chunk * batch, (chunk + 1) * batch)
            of = (x[rows], y[rows])
            counts = self.kept.part(
                lambda: torch.tensor(planted(rows.start) or []), "planted", batch, rows.start, of=of
            )
            return tuple(counts.tolist()) if len(counts) else None

        def planted(first: int) -> tuple[int, int, int, int] | None:
            part, labels = x[first : first + batch], y[first : first + batch]
            try:
                trap = plant(
                    model,
                    part,
                    labels,
                    self.eps,
                    num_classes=num_classes,
                    draws=self.draws,
                    resubmissions=self.resubmissions,
                    seed=derive_seed(self.seed, "planted", first),
                )
            except InputError:
                return None
            if not bool(trap.sound.any()):
                return 0, 0, self.draws, 0
            point = self.points(self.attack, trap.model, trap.x, labels, "planted", first)
            deployed = replace(self, draws=trap.draws)
            fooled = deployed.score(trap.model, point, labels, "found", first).correct < 0.5
            hits = (trap.sound & fooled, trap.sound, trap.sound & trap.steered)
            found, sound, steered = (int(each.sum()) for each in hits)
            return found, sound, trap.draws, steered

        counts = sharded(-(-len(x) // batch), part_found, "planted points")
        sound = [count for count in counts if count is not None]
        if len(sound) < len(counts):
            return 0, 0, self.draws, 0
        hits, totals, draws, steered = zip(*sound, strict=True)
        return sum(hits), sum(totals), max(draws), sum(steered)

    def gain(
        self, model: AnyModel, x: Tensor, y: Tensor, doubled: Attack, batch: int, found: Tensor | None = None
    ) -> Gain:
        """Return the accuracy that twice the effort costs, as a share of all images.

        Survivors are found on one stream; the better of both attacks' points is chosen for each of them on a
        second, and both are scored on a third, so that luck in one draw is no gain.
        """

        def first_time(chunk: int) -> tuple[Tensor, Tensor]:
            first = chunk * batch
            part, labels = x[first : first + batch], y[first : first + batch]
            if found is None:
                point = self.points(self.attack, model, part, labels, "gate", first)
            else:
                point = found[first : first + len(part)].to(part)
            # As the ladder retires an image, not where it counts as broken: half-broken ones can lose more.
            survives = self.score(model, point, labels, "gate", "survivors", first).correct > 1 - RETIRED
            return point.cpu(), survives

        before, survives = zip(*sharded(-(-len(x) // batch), first_time, "convergence gate"), strict=True)
        survivors = torch.cat(survives).nonzero().flatten()
        if not len(survivors):
            return Gain(0.0, None, 0, 0)
        chosen = survivors[:SURVIVORS].to(x.device)
        points = torch.cat(before).to(x.device)

        def lost(chunk: int) -> Tensor:
            rows, first = chosen[chunk * batch : (chunk + 1) * batch], chunk * batch
            of = (x[rows], y[rows], points[rows])
            return self.kept.part(partial(loss, rows, first), "gate", batch, first, of=of)

        def loss(rows: Tensor, first: int) -> Tensor:
            labels, old = y[rows], points[rows]
            new = self.points(doubled, model, x[rows], labels, "gate", "doubled", first)
            kept = [self.score(model, p, labels, "gate", "selection", first).correct for p in (old, new)]
            better = (kept[1] < kept[0]).to(x.device).view(-1, *[1] * (x.ndim - 1))
            both = (old, torch.where(better, new, old))
            left = [self.score(model, p, labels, "gate", "score", first).correct for p in both]
            return left[0] - left[1]

        losses = torch.cat(sharded(-(-len(chosen) // batch), lost, "convergence gate, doubled"))
        share, n = len(survivors) / len(x), len(losses)
        error = share * float(losses.double().std()) / math.sqrt(n) if n > 1 else None
        return Gain(gained(losses, len(survivors), len(x)), error, len(survivors), n)

    def control(self, undefended: nn.Module, x: Tensor, y: Tensor, batch: int) -> tuple[float, float, float]:
        """Return the accuracy behind 8-bit noise, the one without, and the radius of both."""
        trial = self
        bare = trial.accuracy(undefended, x, y, batch, "bare")
        while bare > CONTROL_LEFT and trial.eps < LARGEST_RADIUS:
            trial = replace(trial, eps=min(2 * trial.eps, LARGEST_RADIUS))
            bare = trial.accuracy(undefended, x, y, batch, "bare")
        noisy = trial.accuracy(noisy_control(undefended, self.draws), x, y, batch, "noisy")
        return noisy, bare, trial.eps

    def accuracy(self, model: nn.Module, x: Tensor, y: Tensor, batch: int, name: str) -> float:
        """Return the accuracy under the attack; the name tells what is kept of two models apart."""

        def correct(chunk: int) -> Tensor:
            first = chunk * batch
            part = x[first : first + batch], y[first : first + batch]
            keys = ("control", name, self.eps, batch, first)
            return self.kept.part(partial(right, *part, first), *keys, of=part)

        def right(part: Tensor, labels: Tensor, first: int) -> Tensor:
            point = self.points(self.attack, model, part, labels, "control", first)
            return self.score(model, point, labels, "control", first).correct

        return float(torch.cat(sharded(-(-len(x) // batch), correct, "control")).mean())
