"""What preflight and active tests attack with: a white box by default, and single attacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from squint import attacks as A
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.incumbent import best_of
from squint.attacks.modes import evaluation_mode

Attack = Callable[[AnyModel, Tensor, Tensor, float, torch.Generator], Tensor]
"""(model, x, y, eps, generator) -> adversarial images, in [0, 1] and within eps."""


@dataclass(frozen=True)
class WhiteBox:
    """Targeted pooled-margin PGD, then targeted APGD on the pooled margin from where that ended.

    The margin serves any number of classes, where the difference-of-logits ratio needs four.

    Attributes:
        steps: steps per target and stage; refinements take five times as many in the first stage.
        restarts: independent runs, of which each image's best is kept.
        eot: single draws per gradient.
        chunk: draws whose graph is held in memory at once.
    """

    steps: int = 20
    restarts: int = 1
    eot: int = 8
    chunk: int | None = None

    def doubled(self) -> WhiteBox:
        """Return the attack with twice the steps, restarts and draws."""
        return replace(self, steps=2 * self.steps, restarts=2 * self.restarts, eot=2 * self.eot)

    def __call__(
        self, model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator
    ) -> Tensor:
        """Return adversarial images."""
        best: Tensor | None = None
        for _ in range(self.restarts):
            first = A.targeted(
                model,
                x,
                y,
                eps=eps,
                steps=self.steps,
                refine_steps=5 * self.steps,
                eot=self.eot,
                chunk=self.chunk,
                generator=generator,
            )
            found = A.apgd_targeted(
                model,
                x,
                y,
                eps=eps,
                steps=self.steps,
                screened=3,
                refined=1,
                eot=self.eot,
                loss="margin",
                chunk=self.chunk,
                generator=generator,
                start=first,
            )
            best = found if best is None else keep_better(model, y, [best, found], self.eot, generator)
        assert best is not None
        return best


@dataclass(frozen=True)
class Configured:
    """One of `squint.attacks` with its settings, called as `Attack` is.

    Attributes:
        function: the attack.
        eot: single draws per gradient.
        settings: its other keyword arguments.
        chunk: draws whose graph is held in memory at once.
    """

    function: Callable[..., Tensor]
    eot: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    chunk: int | None = None

    def __call__(
        self, model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator
    ) -> Tensor:
        """Return adversarial images."""
        return self.function(
            model, x, y, eps=eps, eot=self.eot, chunk=self.chunk, generator=generator, **self.settings
        )


def holding(attack: Attack, chunk: int | None) -> Attack:
    """Return the attack with no more draws held at once than `chunk` and its own, where it can be told."""
    if chunk is None or not isinstance(attack, WhiteBox | Configured):
        return attack
    return replace(attack, chunk=min(chunk, attack.chunk or chunk))


def keep_better(
    model: AnyModel, y: Tensor, points: list[Tensor], draws: int, generator: torch.Generator
) -> Tensor:
    """Return for each image the point of the highest pooled margin, all on one bank of `draws` draws."""
    with evaluation_mode(model):
        return best_of(Units(model, y, draws), points, generator)
