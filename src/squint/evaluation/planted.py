"""Adversarial points planted by construction (Zimmermann et al. 2022), to test an attack on a given model.

The model is copied, and in each of its members the last linear layer is replaced by one that is fitted to a
single image: it answers the image's label all over the eps-ball except around one chosen point, the planted
one. Every other part, quantizers, noise and whatever may hide a gradient, stays as it was. An attack that
cannot find a point that is known to be there says nothing about the model by finding none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, InputError
from squint._random import derive_generator, derive_seed
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.objectives import objective
from squint.evaluation.planted_head import PlantedHead
from squint.evaluation.scoring import is_random, score

_NEIGHBOURS = 96
"""Points of each ball that must stay with the label; half of them are corners, as the planted one is."""
_FIT_DRAWS = 8
"""Draws by which the features of a neighbour are known."""
_POINT_DRAWS = 256
"""Draws by which the features of the planted point are known."""
_STEER_STEPS, _STEER_DRAWS, _AT_ONCE = 6, 128, 32
RIGHT, WRONG = 0.9, 0.9
"""Shares of deployments that must be right at the image, and wrong at its planted point."""
ELSEWHERE = 0.9
"""Share of deployments that must be right at random points of the ball, all of them together."""
_ELSEWHERE_POINTS = 8
_MORE_DRAWS = (1, 4, 16)
"""Times as many draws as are deployed by which a planted copy answers, until half its points are sound."""
_ENOUGH = 0.5


@dataclass(frozen=True)
class Planted:
    """A copy of a model with one adversarial point in each image's ball.

    Attributes:
        model: the copy; its heads belong to the images in their order, so a batch holds all of them, once or
            folded draw by draw.
        x: the images (batch, ...).
        y: their labels (batch,).
        points: the planted points (batch, ...), corners of the eps-balls.
        sound: where the construction holds (batch,): nine deployments in ten or more are right at the image
            and at random points of its ball, and as many are wrong at the planted point.
        draws: draws that one deployment of the copy averages.
        steered: where gradients of a readout led to the corner (batch,); elsewhere it is random.
    """

    model: AnyModel
    x: Tensor
    y: Tensor
    points: Tensor
    sound: Tensor
    draws: int
    steered: Tensor


def plant(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    num_classes: int,
    draws: int,
    resubmissions: int,
    seed: int,
) -> Planted:
    """Return a copy of the model in which one corner of each eps-ball is adversarial by construction.

    The corner is random. Where noise is too coarse for a random corner to be told from the rest of the ball,
    the corner is steered: from the random one, steps of length eps along the sign of the gradient of the
    readout that tells the corner reached so far from the rest of the ball, whitened by the noise. That
    maximises the distance of mean features, knows no label and no loss, and shares with an attack only the
    gradient itself: where that is missing, the corner stays random and an attack misses it; where it is wrong
    in one way throughout, both follow it, which planted points do not tell (`blind_spots` and
    `gradient_flags.fidelity` do). Where the noise of S draws still hides it, the copy answers by the mean of
    more of them: an attack, which works on the mean over draws of its own, has the same task.

    Args:
        model: a module in evaluation mode with a last linear layer in each of its `members`, or in itself.
        x: images (batch, ...).
        y: labels (batch,).
        eps: L∞ radius.
        num_classes: classes of the model.
        draws: draws S of a deployment, by which the construction is scored.
        resubmissions: deployments by which it is scored.
        seed: of the corners, the neighbours, the targets and the noise.

    Raises:
        squint.InputError: a member has no linear layer, or one that runs in few calls only.
    """
    ball, generator = Ball(x, eps), derive_generator(seed, "planted")
    points = corners = ball.project(ball.x + eps * _signs(x, generator))
    neighbours = [ball.x]
    for index in range(_NEIGHBOURS):
        corner = ball.project(ball.x + eps * _signs(x, generator))
        neighbours.append(corner if index % 2 else ball.random_point(generator))
    elsewhere = [ball.random_point(generator) for _ in range(_ELSEWHERE_POINTS)]
    shift = torch.randint(1, num_classes, y.shape, generator=generator).to(y)
    targets = (y + shift) % num_classes
    fitted = copy.deepcopy(model)
    still = not is_random(model)
    once = Units(cast(AnyModel, fitted), y, 1)
    layers = _last_linear_layers(
        fitted,
        lambda call: once.logits(ball.x, derive_seed(seed, "planted", "layers", call)),
        1 if still else _FIT_DRAWS,
    )
    heads = [_replace(fitted, layer, num_classes, len(x)) for layer in layers]
    units = len(_members(model))

    def features(point: Tensor, count: int, *keys: object) -> list[Tensor]:
        for head in heads:
            head.recorded = []
        each = Units(cast(AnyModel, fitted), y, 1 if still else count, chunk=_AT_ONCE)
        # Of a model that runs one of several layers by chance, each has to have run.
        for further in range(_FIT_DRAWS):
            each.logits(point, derive_seed(seed, "planted", *keys, *([further] if further else [])))
            if all(head.recorded for head in heads):
                return [_folded(head, len(x)) for head in heads]
        raise InputError(
            f"{type(model).__name__} runs one of its last linear layers too seldom; a planted point needs all"
        )

    around = [
        _stacked(each)
        for each in zip(*(features(p, _FIT_DRAWS, i) for i, p in enumerate(neighbours)), strict=True)
    ]

    def grow(point: Tensor, draws: int) -> Planted:
        for head, near, there in zip(heads, around, features(point, _POINT_DRAWS, "point"), strict=True):
            head.fit(near, there, y, targets, draws * units)

        def correct(images: Tensor, tries: int, place: int) -> Tensor:
            keys = ("planted", place)
            return score(
                cast(AnyModel, fitted), images, y, draws=draws, resubmissions=tries, seed=seed, keys=keys
            ).correct

        tries = -(-resubmissions // _ELSEWHERE_POINTS)
        others = torch.stack([correct(each, tries, 2 + i) for i, each in enumerate(elsewhere)]).mean(0)
        sound = (correct(ball.x, resubmissions, 0) >= RIGHT) & (others >= ELSEWHERE)
        sound &= correct(point, resubmissions, 1) <= 1 - WRONG
        steered = (point != corners).flatten(1).any(1).to(sound.device)
        return Planted(cast(AnyModel, fitted), ball.x, y, point, sound, draws, steered)

    first = grow(points, draws)
    if bool(first.sound.all()):
        return first
    keep = per_example(first.sound.to(x.device), x)
    readout = objective("mean_logits_margin", y, targets=targets)
    steering = Units(cast(AnyModel, fitted), y, 1 if still else _STEER_DRAWS, chunk=_AT_ONCE)
    for step in range(_STEER_STEPS):
        for head, near, there in zip(
            heads, around, features(points, _STEER_DRAWS, "steered", step), strict=True
        ):
            head.point_at(near, there, y, targets)
        _, slope = steering.gradient(points, readout, derive_seed(seed, "planted", "slope", step))
        corner = ball.project(ball.x + eps * slope.nan_to_num(0.0).sign().to(x))
        points = torch.where(keep | (slope == 0), points, corner)
    for factor in _MORE_DRAWS if isinstance(fitted, HasMemberLogits) and not still else (1,):
        trap = grow(points, factor * draws)
        if float(trap.sound.double().mean()) >= _ENOUGH:
            break
    if hasattr(fitted, "draws"):
        # Whoever asks the copy without saying how many draws must get this rule too.
        cast(Any, fitted).draws = trap.draws
    return trap


def _folded(head: PlantedHead, batch: int) -> Tensor:
    """Return the recorded features (draws, batch, features); a member without noise was asked once."""
    assert head.recorded is not None
    # A point without finite features cannot be told from others: the construction then fails on scoring.
    return torch.cat(head.recorded).view(-1, batch, head.recorded[0].shape[-1]).nan_to_num(0.0, 0.0, 0.0)


def _members(model: nn.Module) -> list[nn.Module]:
    members = getattr(model, "members", None)
    if isinstance(model, HasMemberLogits) and isinstance(members, Iterable):
        return list(members)
    return [model]


def _last_linear_layers(model: nn.Module, run: Callable[[int], object], calls: int) -> list[nn.Linear]:
    """Return the linear layers that run last in a member, in any of so many calls."""
    order: list[nn.Module] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, _: order.append(layer))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    found: dict[nn.Linear, None] = {}
    try:
        for call in range(calls):
            order.clear()
            run(call)
            for member in _members(model):
                inside = {part for part in member.modules() if isinstance(part, nn.Linear)}
                last = next((layer for layer in reversed(order) if layer in inside), None)
                if last is None:
                    raise InputError(
                        f"{type(member).__name__} runs no linear layer; a planted point needs one to refit"
                    )
                found[last] = None
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def _stacked(each: Sequence[Tensor]) -> Tensor:
    """Return features (points, draws, batch, features), of as many draws as all points have."""
    least = min(len(features) for features in each)
    return torch.stack([features[:least] for features in each])


def _replace(model: nn.Module, layer: nn.Linear, num_classes: int, batch: int) -> PlantedHead:
    quantizer = getattr(layer, "activation_quantizer", None)
    head = PlantedHead(quantizer, num_classes, batch).train(layer.training)
    for part in list(model.modules()):
        for name, child in part._modules.items():
            if child is layer:
                part._modules[name] = head
    return head


def _signs(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(2, x.shape, generator=generator).to(x) * 2 - 1
