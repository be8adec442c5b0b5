"""Attacks with a name and a budget: what `evaluate` runs, and what records say was run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from squint import attacks as A
from squint._checks import InputError, InputTypeError, check_choice, format_fraction, parse_fraction
from squint.attacks.gradients import AnyModel

SEED = "seed"
CUSTOM = "custom"


@dataclass(frozen=True)
class AttackSetting:
    """One attack with its budget; `evaluate` gives it the radius.

    Attributes:
        name: "fgsm", or any other name for PGD with this budget; part of the random streams' keys.
        preset: what records call the budget; only the seed protocol is called "seed".
        norm: "linf" or "l2".
        steps: gradient steps; 1 for fgsm.
        eot: single draws per gradient.
        restarts: independent runs; 1 for fgsm.
        loss: a loss of `squint.attacks`.
    """

    name: str = "pgd"
    preset: str = CUSTOM
    norm: str = "linf"
    steps: int = 20
    eot: int = 1
    restarts: int = 1
    loss: str = "ce"

    def __post_init__(self) -> None:
        """Refuse a budget that the attack would not spend: records must say what was run."""
        check_choice("norm", self.norm, ("linf", "l2"))
        if self.name == "fgsm" and (self.steps, self.restarts) != (1, 1):
            raise InputError(
                f"fgsm has steps {self.steps} and restarts {self.restarts}; allowed: 1 and 1, or another name"
            )

    def run(
        self,
        model: AnyModel,
        x: Tensor,
        y: Tensor,
        eps: float,
        generator: torch.Generator,
        *,
        chunk: int | None = None,
    ) -> Tensor:
        """Return adversarial images, shaped like x; `chunk` draws are held in memory at once (None: all)."""
        if self.name == "fgsm":
            return A.fgsm(
                model,
                x,
                y,
                eps=eps,
                norm=self.norm,
                eot=self.eot,
                loss=self.loss,
                chunk=chunk,
                generator=generator,
            )
        return A.pgd(
            model,
            x,
            y,
            eps=eps,
            norm=self.norm,
            steps=self.steps,
            eot=self.eot,
            restarts=self.restarts,
            loss=self.loss,
            chunk=chunk,
            generator=generator,
        )


SEED_PROTOCOL = AttackSetting(preset=SEED)
"""PGD, 20 steps of eps/4, random start, one draw per gradient: the seed protocol of published figures."""

NAMED = {
    SEED: SEED_PROTOCOL,
    "pgd": SEED_PROTOCOL,
    "fgsm": AttackSetting("fgsm", "fgsm", steps=1),
    "pgd-eot10": AttackSetting("pgd-eot10", "pgd-eot10", eot=10),
}
"""What people may ask for by name; "seed" and "pgd" are both the seed protocol."""


def named_settings(attacks: str | Sequence[str | AttackSetting]) -> list[AttackSetting]:
    """Return the settings that names stand for, in order.

    Raises:
        squint.InputError: an unknown name, none at all, or two settings of one name, whose records and random
            streams could not be told apart.
    """
    settings = []
    for attack in [attacks] if isinstance(attacks, str | AttackSetting) else attacks:
        if isinstance(attack, AttackSetting):
            settings.append(attack)
            continue
        if not isinstance(attack, str):
            raise InputTypeError(f"attacks holds {type(attack).__name__}; needed: names or AttackSettings")
        check_choice("attacks", attack, NAMED)
        settings.append(NAMED[attack])
    if not settings:
        raise InputError(f"attacks is empty; allowed: one or more of {', '.join(NAMED)}")
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"attacks names {name!r} more than once; allowed: every name once")
    return settings


def radii_of(eps: float | str | Sequence[float | str], settings: Sequence[AttackSetting]) -> list[float]:
    """Return the radii, each once, in the order given; at most 1 unless every setting is in L2.

    Raises:
        squint.InputError: no radius, or one that is not allowed.
    """
    high = math.inf if all(setting.norm == "l2" for setting in settings) else 1.0
    radii: dict[str, float] = {}
    for value in [eps] if isinstance(eps, str | float | int) else eps:
        radius = parse_fraction("eps", value, high=high)
        radii.setdefault(format_fraction(radius), radius)
    if not radii:
        raise InputError("eps is empty; allowed: one radius or more, such as 5/255")
    return list(radii.values())
