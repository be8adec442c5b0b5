"""Counting what an attack asks of a model: gradients and forward passes, per image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from squint._checks import HasMemberLogits, Model
from squint.attacks.gradients import AnyModel


@dataclass
class Meter:
    """Single draws asked of a model for each image of a batch.

    Attributes:
        gradients: draws through which a gradient came back; several losses of one pass count one each.
        forwards: draws that were evaluated without a gradient.
    """

    gradients: int = 0
    forwards: int = 0

    def counted(self, model: AnyModel) -> AnyModel:
        """Return the model behind this meter, with `member_logits` where it has them.

        The wrapper is no module: set the evaluation mode on the model itself.
        """
        return _MeteredMembers(model, self) if isinstance(model, HasMemberLogits) else _Metered(model, self)

    def note(self, output: Tensor, draws: int) -> Tensor:
        """Count one pass of `draws` draws that gave `output`, and every backward pass through it."""

        def returned(_: Tensor) -> None:
            self.gradients += draws

        if output.requires_grad:
            output.register_hook(returned)  # type: ignore[no-untyped-call]
        else:
            self.forwards += draws
        return output


class _Metered:
    def __init__(self, model: Model, meter: Meter) -> None:
        self.model, self.meter = model, meter

    def __call__(self, x: Tensor) -> Tensor:
        return self.meter.note(self.model(x), 1)


class _MeteredMembers:
    def __init__(self, model: HasMemberLogits, meter: Meter) -> None:
        self.model, self.meter = model, meter

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Return the model's member logits and count their draws."""
        extra = {"stratified": True} if stratified else {}
        return self.meter.note(self.model.member_logits(x, draws, generator=generator, **extra), draws)
