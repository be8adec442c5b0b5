"""Bridges to other attack libraries: our models for their attacks, their attacks under our scoring rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from squint import _random
from squint._checks import (
    RANGE_TOLERANCE,
    HasMemberLogits,
    InputError,
    InputTypeError,
    check_logits,
    check_number,
    format_fraction,
)
from squint.attacks.geometry import Ball
from squint.attacks.gradients import AnyModel
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import log_mean_probability

Attack = Callable[[AnyModel, Tensor, Tensor, float, torch.Generator], Tensor]
"""(model, x, y, eps, generator) -> adversarial images, in [0, 1] and within eps."""

Run = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""(module, x, y, eps) -> adversarial images: another library's attack on a module that returns logits."""


class DeployedModule(nn.Module):
    """A model as other libraries expect one: a module that stays in evaluation mode and returns logits.

    Each call is one deployment under fresh noise: the log mean probability over all members and `draws`
    draws, or one call of a model without members. A library that takes one gradient per step therefore sees
    the gradient of one deployment; its own EOT averages the losses of several, which is not the deployed
    rule's pooled loss. The wrapped model keeps its mode, and its parameters get no gradient from what is
    computed here.

    Args:
        model: what is wrapped; as a module it lends its parameters, for libraries that look up the device.
        draws: draws per call; None takes the model's own, 1 where it names none.
        generator: source of the noise; None takes squint's own stream.
    """

    def __init__(self, model: AnyModel, draws: int | None, generator: torch.Generator | None) -> None:
        super().__init__()
        if not callable(model) and not isinstance(model, HasMemberLogits):
            raise InputTypeError(
                f"the model is {type(model).__name__}; needed: a callable returning logits, or member_logits"
            )
        if draws is not None and not isinstance(model, HasMemberLogits):
            raise InputError(f"draws is {draws!r} for a model without member_logits; allowed: None, one call")
        self.wrapped = model
        own = getattr(model, "draws", 1)
        count = (own if isinstance(own, int) else 1) if draws is None else draws
        self.draws = int(check_number("draws", count, 1, whole=True))
        self.generator = generator
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) under fresh noise.

        Args:
            x: images (batch, ...), in [0, 1].
        """
        source = nullcontext() if self.generator is None else _random.noise(self.generator)
        with evaluation_mode(self.wrapped), _frozen(self.wrapped), source:
            if isinstance(self.wrapped, HasMemberLogits):
                return log_mean_probability(self.wrapped.member_logits(x, self.draws))
            logits = self.wrapped(x)
        check_logits(logits, len(x))
        return logits

    def train(self, mode: bool = True) -> DeployedModule:
        """Return itself, in evaluation mode as before: attacks that switch modes would change the model."""
        del mode
        return self


def as_module(
    model: AnyModel, *, draws: int | None = None, generator: torch.Generator | None = None
) -> nn.Module:
    """Return the model as a `torch.nn.Module` that the attacks of torchattacks, foolbox and ART accept.

    It maps images in [0, 1] to logits under fresh noise in each call, and is always in evaluation mode. Those
    libraries see one deployed call per gradient; see `DeployedModule`. Their backward passes use TF32 where
    torch is set to; through `external` they do not.

    Args:
        model: a callable returning logits (batch, classes), or a model with `member_logits`.
        draws: draws per call of a model with `member_logits`; None takes its own.
        generator: source of the noise; None takes squint's own stream.

    Raises:
        InputTypeError: for something that is no model.
        InputError: for draws below 1, or draws of a model without members.
    """
    return DeployedModule(model, draws, generator)


def external(run: Run, *, norm: str = "linf", draws: int | None = None) -> Attack:
    """Return another library's attack as (model, x, y, eps, generator) -> adversarial images.

    `run` gets the model as `as_module` makes it, the images, the labels and the radius. The generator gives
    the model's noise and seeds the global generators of torch and numpy, which those libraries draw from;
    both are put back afterwards. What comes back may exceed the ball by rounding alone, and is projected.

    The examples are not worth what the other library says of them: score them as squint's own are.

    Args:
        run: (module, x, y, eps) -> images shaped like x.
        norm: norm in which `run` keeps to eps, "linf" or "l2".
        draws: draws per call of a model with `member_logits`; None takes its own.

    Raises:
        InputError: from the attack, where the images that `run` returns are not shaped like x, not finite, or
            farther from x than eps.
    """

    def attack(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        ball = Ball(x, eps, norm)
        noise = torch.Generator().manual_seed(_random.next_seed(generator))
        module = as_module(model, draws=draws, generator=noise)
        # The mode for its backward passes too, which are outside of the module's calls.
        with evaluation_mode(model), _global_state(_random.next_seed(generator), x.device):
            found = run(module, ball.x.clone(), y.clone(), eps)
        return _within(ball, found)

    return attack


def from_torchattacks(
    make: Callable[[nn.Module, float], Callable[[Tensor, Tensor], Tensor]], *, draws: int | None = None
) -> Attack:
    """Return an attack of torchattacks, in L∞, as (model, x, y, eps, generator) -> adversarial images.

    An attack of that library is bound to its model and radius when it is made, so it is made anew for each
    call: `from_torchattacks(lambda model, eps: torchattacks.PGD(model, eps=eps, steps=20))`. Written for
    version 3.5. For its attacks in L2 use `external(..., norm="l2")`. Its APGD and AutoAttack give the clean
    image back where no call on the way erred; through `external` use APGD's `perturb(..., best_loss=True)`.

    Args:
        make: (module, eps) -> the library's attack, called with (images, labels).
        draws: draws per call of a model with `member_logits`; None takes its own.
    """
    return external(lambda module, x, y, eps: make(module, eps)(x, y), draws=draws)


def _within(ball: Ball, found: Tensor) -> Tensor:
    """Return what an attack found, projected, or raise where more than rounding is to be projected."""
    if not isinstance(found, Tensor):
        raise InputTypeError(f"the external attack returned {type(found).__name__}; needed: a torch.Tensor")
    if found.shape != ball.x.shape:
        raise InputError(
            f"the external attack returned shape {tuple(found.shape)}; needed: {tuple(ball.x.shape)}"
        )
    found = found.detach().to(ball.x)
    inside = ball.project(found)
    # NaN compares as outside, too.
    outside = int((~((found - inside).abs() <= RANGE_TOLERANCE)).flatten(1).any(1).sum())
    if outside:
        raise InputError(
            f"the external attack left the ball of radius {format_fraction(ball.eps)}, or [0, 1], on "
            f"{outside} of {len(found)} images; allowed: within eps, up to {RANGE_TOLERANCE:g}"
        )
    return inside


@contextmanager
def _frozen(model: object) -> Iterator[None]:
    """Keep the parameters out of the graph: some libraries call backward() and would leave gradients."""
    learned = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@contextmanager
def _global_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch and numpy, and put both back."""
    before = np.random.get_state()  # noqa: NPY002 - it is the global state that is to be put back
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
