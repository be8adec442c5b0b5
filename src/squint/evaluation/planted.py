"""Adversarial points planted by construction (Zimmermann et al. 2022), to test an attack on a given model.

The model is copied, and in each of its members the last linear layer is replaced by one that is fitted to a
single image: it answers the image's label all over the eps-ball except around one chosen point, the planted
one. Every other part, quantizers, noise and whatever may hide a gradient, stays as it was. An attack that
cannot find a point that is known to be there says nothing about the model by finding none.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, InputError
from squint._random import derive_generator, derive_seed
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.objectives import objective
from squint.evaluation.planted_head import PlantedHead
from squint.evaluation.scoring import score

_NEIGHBOURS = 96
"""Points of each ball that must stay with the label; half of them are corners, as the planted one is."""
_FIT_DRAWS = 8
RIGHT, WRONG = 0.9, 0.75
"""Shares of deployments that must be right at the image, and wrong at its planted point."""


@dataclass(frozen=True)
class Planted:
    """A copy of a model with one adversarial point in each image's ball.

    Attributes:
        model: the copy; its heads belong to the images in their order, so a batch holds all of them, once or
            folded draw by draw.
        x: the images (batch, ...).
        y: their labels (batch,).
        points: the planted points (batch, ...), corners of the eps-balls.
        sound: where the construction holds (batch,): nine deployments in ten or more are right at the image,
            and three in four or more are wrong at the planted point.
    """

    model: AnyModel
    x: Tensor
    y: Tensor
    points: Tensor
    sound: Tensor


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

    The corner is random. Where noise is too coarse for one random corner to be told from the rest of the
    ball, it is the corner to which the gradient of a random readout of the features points: further from the
    others, but found along the model's own gradient, which a random corner does not rely on.

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
        squint.InputError: a member has no linear layer.
    """
    ball, generator = Ball(x, eps), derive_generator(seed, "planted")
    points = ball.project(ball.x + eps * _signs(x, generator))
    neighbours = [ball.x]
    for index in range(_NEIGHBOURS):
        corner = ball.project(ball.x + eps * _signs(x, generator))
        neighbours.append(corner if index % 2 else ball.random_point(generator))
    shift = torch.randint(1, num_classes, y.shape, generator=generator).to(y)
    targets = (y + shift) % num_classes
    fitted = copy.deepcopy(model)
    units = Units(cast(AnyModel, fitted), y, _FIT_DRAWS)
    layers = _last_linear_layers(fitted, lambda: units.logits(ball.x, derive_seed(seed, "planted", "layers")))
    heads = [_replace(fitted, layer, num_classes, len(x)) for layer in layers]

    def features(point: Tensor, *keys: object) -> list[Tensor]:
        for head in heads:
            head.recorded = []
        units.logits(point, derive_seed(seed, "planted", *keys))
        return [_folded(head, len(x)) for head in heads]

    around = [
        torch.stack(each) for each in zip(*(features(p, i) for i, p in enumerate(neighbours)), strict=True)
    ]

    def grow(point: Tensor) -> Planted:
        for head, near, there in zip(heads, around, features(point, "point"), strict=True):
            head.fit(near, there, y, targets)
        shares = [
            score(
                cast(AnyModel, fitted),
                images,
                y,
                draws=draws,
                resubmissions=resubmissions,
                seed=seed,
                keys=("planted", place),
            ).correct
            for place, images in enumerate((ball.x, point))
        ]
        sound = (shares[0] >= RIGHT) & (shares[1] <= 1 - WRONG)
        return Planted(cast(AnyModel, fitted), ball.x, y, point, sound)

    first = grow(points)
    if bool(first.sound.all()):
        return first
    for head, near in zip(heads, around, strict=True):
        head.read_out(near, y, targets, generator)
    _, slope = Units(cast(AnyModel, fitted), y, 8 * _FIT_DRAWS, chunk=_FIT_DRAWS).gradient(
        ball.x, objective("margin", y, targets=targets), derive_seed(seed, "planted", "steered")
    )
    signs = torch.where(slope == 0, _signs(x, generator), slope.nan_to_num(0.0).sign().to(x))
    keep = per_example(first.sound.to(x.device), x)
    return grow(torch.where(keep, points, ball.project(ball.x + eps * signs)))


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


def _last_linear_layers(model: nn.Module, run: Callable[[], object]) -> list[nn.Linear]:
    """Return each member's linear layer that runs last when the model runs."""
    order: list[nn.Module] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, _: order.append(layer))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for member in _members(model):
        inside = {part for part in member.modules() if isinstance(part, nn.Linear)}
        last = next((layer for layer in reversed(order) if layer in inside), None)
        if last is None:
            raise InputError(
                f"{type(member).__name__} runs no linear layer; a planted point needs one to refit"
            )
        found.append(last)
    return found


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
