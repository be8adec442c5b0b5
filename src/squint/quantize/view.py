"""`attacker_view`: the same network, differentiated another way."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, InputError, InputTypeError, check_choice, check_number, nearest
from squint.quantize.functional import GRADIENTS
from squint.quantize.gradient_view import GradientView, gradient_view
from squint.quantize.quantizer import StochasticQuantizer

VIEWS = (*GRADIENTS, "additive")


class AttackerView(nn.Module):
    """A model seen through another surrogate gradient; shares every parameter and changes nothing."""

    def __init__(self, model: nn.Module, view: GradientView) -> None:
        super().__init__()
        self.model = model
        self.view = view
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's own output."""
        with gradient_view(self.view):
            return cast(Tensor, self.model(x))


class MemberAttackerView(AttackerView):
    """An `AttackerView` of a model that exposes its members' logits."""

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return the model's member logits (draws, members, batch, classes)."""
        with gradient_view(self.view):
            return cast(HasMemberLogits, self.model).member_logits(
                x, draws, generator=generator, stratified=stratified
            )


def attacker_view(
    net: nn.Module,
    gradient: str = "expected",
    width_factor: float = 1.0,
    *,
    layers: Sequence[str] | None = None,
) -> AttackerView:
    """Return a view of `net` whose quantizers differentiate as the attacker wishes.

    Forward values stay those of `net`, except for "additive", which puts the additive-noise twin
    x + w n (bounded to the range) in the place of every quantizer.

    Args:
        net: any module with quantizers inside.
        gradient: "expected", "straight_through", "identity" or "additive".
        width_factor: how much wider the density of "expected" is than the noise; above 0.
        layers: shell-style patterns of the quantizers it is about, matched with a quantizer's `name` and with
            its path in `net`; the others differentiate as they are set. None: all of them.

    Raises:
        squint.InputError: a setting is not allowed, or a pattern matches no quantizer.
    """
    if not isinstance(net, nn.Module):
        raise InputTypeError(f"attacker_view needs a torch.nn.Module, got {type(net).__name__}")
    check_choice("gradient", gradient, VIEWS)
    check_number("width_factor", width_factor, 0, open_low=True)
    kind = MemberAttackerView if isinstance(net, HasMemberLogits) else AttackerView
    chosen = None if layers is None else _chosen(net, layers)
    return kind(net, GradientView(gradient, width_factor, chosen))


def _chosen(net: nn.Module, patterns: Sequence[str]) -> frozenset[int]:
    """Return the ids of the quantizers that a pattern matches; the view keeps them alive with the model."""
    names = {
        id(module): (module.name, path)
        for path, module in net.named_modules()
        if isinstance(module, StochasticQuantizer)
    }
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for pair in names.values() for name in pair):
            known = [name for pair in names.values() for name in pair]
            raise InputError(f"layers names {pattern!r}, which matches no quantizer{nearest(pattern, known)}")
    return frozenset(
        key for key, pair in names.items() if any(fnmatchcase(n, p) for n in pair for p in patterns)
    )
