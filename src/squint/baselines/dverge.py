"""DVERGE: members that do not share the features which fool them.

Yang et al. 2020, "DVERGE: Diversifying Vulnerabilities for Enhanced Robust Generation of Ensembles", NeurIPS,
arXiv:2009.14720. A source image x is changed until a layer f_i^l of member i takes it for another image t:

    distilled image     x'_i(x, t) = argmin_z || f_i^l(z) - f_i^l(t) ||_2^2,  |z - x|_inf <= eps
    loss of member i    L_i = sum_{j != i} CE( f_i(x'_j(x, t)), y ), y the label of x

From the paper: eps 0.07, 10 steps of 0.007 with momentum 1 and no random start, a random layer, features
before the activation (here a normalization's output, or a convolution's where there is none). What departs:
the paper starts from members trained for as long before, so that the first half of our training is that of
plain members; the layer changes with every step (the paper: every epoch); the target is another image of
the batch (the paper: of a second stream); images are distilled in evaluation mode, so that no batch
statistics move (the paper distils in training mode); the sum over j is a mean, as is that over members. As
in the paper, the running statistics are those of the distilled images once it is they that train.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from squint._checks import InputError, parse_fraction
from squint._random import default_generator
from squint.attacks.geometry import Ball
from squint.attacks.modes import evaluation_mode
from squint.attacks.pgd import ascend
from squint.baselines.fixed_pass import member_losses
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.ensemble import Ensemble
from squint.training import Objective


def feature_layers(member: nn.Module) -> list[nn.Module]:
    """Return the layers whose outputs are features: normalizations, or else convolutions.

    Raises:
        squint.InputError: there are none.
    """
    for kind in (_BatchNorm, _ConvNd):
        found: list[nn.Module] = [module for module in member.modules() if isinstance(module, kind)]
        if found:
            return found
    raise InputError(f"{type(member).__name__} has no convolution; rival dverge allowed: networks with some")


def features_of(member: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """Return the layer's output (batch, n) for images x, under one draw of the member's noise."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        Ensemble([member], 1).member_logits(x, 1, generator=default_generator())
    finally:
        handle.remove()
    return seen[-1].flatten(1)


def distil(
    member: nn.Module,
    layer: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
) -> Tensor:
    """Return images within eps of x whose features come near those of `target`.

    The member is asked in evaluation mode and left in its own.

    Args:
        member: whose features.
        layer: one of `feature_layers(member)`.
        x: source images (batch, ...) in [0, 1].
        target: images (batch, ...) whose features are wanted.
        eps: L-infinity radius.
        steps: gradient steps, with momentum 1.
        step_size: of each.
    """
    ball = Ball(x, eps)
    with evaluation_mode(member):
        with torch.no_grad():
            wanted = features_of(member, layer, target)

        def gradient(point: Tensor) -> tuple[Tensor, Tensor]:
            leaf = point.detach().requires_grad_()
            with torch.enable_grad():
                nearness = -(features_of(member, layer, leaf) - wanted).square().mean(1)
                (slope,) = torch.autograd.grad(nearness.sum(), leaf)
            return nearness.detach(), slope.double()

        return ascend(gradient, ball, ball.x.clone(), [step_size] * steps, momentum=1.0).to(x.dtype)


@dataclass(config=OPTIONS)
class Dverge(Rival):
    """Each member learns the images that are distilled from the others."""

    name: ClassVar[str] = "dverge"
    own_loss: ClassVar[bool] = True
    least_members: ClassVar[int] = 2
    eps: str = "0.07"
    """L-infinity radius of the distillation, a fraction."""
    steps: int = Field(default=10, ge=1)
    """Its gradient steps."""
    step_size: float | None = Field(default=None, gt=0)
    """Length of a step; null: eps/10."""
    warmup: float = Field(default=0.5, ge=0, le=1)
    """Share of training, from its start, in which members learn the images as they are."""

    @field_validator("eps")
    @classmethod
    def _eps(cls, value: str) -> str:
        if parse_fraction("eps", value) == 0:
            raise InputError(f"eps is {value!r}; allowed: above 0, because images are distilled within it")
        return value

    @property
    def tier(self) -> str:
        """C: it trains at points found by ascent."""
        return "C"

    def objective(self, setup: Setup) -> Objective:
        """Return the loss, mean over members."""
        eps = parse_fraction("eps", self.eps)
        step_size = eps / 10 if self.step_size is None else self.step_size
        draws = setup.training_draws

        def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
            generator = default_generator()
            if step < self.warmup * setup.total_steps:
                logits = ens.member_logits(x, draws, generator=generator)
                return {"member_ce": member_losses(logits, y).mean()}
            targets = x[torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)]
            members = list(ens.members)
            depth = torch.rand((), generator=generator, device=generator.device).item()
            losses = []
            for own, member in enumerate(members):
                layers = feature_layers(member)
                layer = layers[int(depth * len(layers))]
                points = distil(member, layer, x, targets, eps=eps, steps=self.steps, step_size=step_size)
                others = Ensemble([other for place, other in enumerate(members) if place != own], draws)
                logits = others.member_logits(points, draws, generator=generator)
                losses.append(member_losses(logits, y).mean())
            return {"distilled_ce": torch.stack(losses).mean()}

        return objective

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the mean over training, rounded up: plain passes, then distillation and others' losses."""
        distilled = members * (self.steps + 1 + (members - 1) * draws)
        return -int(-(self.warmup * members * draws + (1 - self.warmup) * distilled) // 1)
