"""Threat models of the information plane: what happens to the images, at a radius or at a strength."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from squint import attacks as A
from squint._checks import HasMemberLogits, InputError, check_choice, format_fraction, parse_fraction
from squint.attacks.gradients import AnyModel
from squint.data.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from squint.evaluation.machine import Fitting
from squint.quantize import set_rounding

CLEAN = "clean"
CORRUPTION = "corruption:"

Run = Callable[..., Tensor]
"""(model, images, labels, size, generator) -> changed images; the size is a radius or a strength. Where the
threat has an `eot`, also the keyword `chunk`: draws that are held at once, None for all."""


@dataclass(frozen=True)
class Setting:
    """One point of a trajectory: `eps` as text for the record, `size` what the threat is run with."""

    eps: str
    size: float
    strength: int | None = None


@dataclass(frozen=True)
class Threat:
    """One threat model.

    Attributes:
        name: as in the rows.
        run: changes the images.
        norm: "linf", "l2", or "" for corruptions, which have strengths instead of radii.
        eot: draws that `run` asks the model for at once and can hold in parts; None: it has no such.
    """

    name: str
    run: Run = field(repr=False)
    norm: str = "linf"
    eot: int | None = None

    def settings(self, eps: Sequence[str | float], strengths: Sequence[int], elements: int) -> list[Setting]:
        """Return the points of the trajectory, the smallest first.

        The radius of an L2 threat is that of the L2 ball with the volume of the L∞ ball of radius eps, about
        0.48·eps·√elements, rounded to a multiple of 1/255. Radii that meet are one point.

        Args:
            eps: L∞ radii, above 0: every trajectory has the clean point.
            strengths: of corruptions.
            elements: pixels times channels of an image.
        """
        if not self.norm:
            return [Setting(f"strength {s}", float(s), s) for s in sorted(strengths)]
        radii = sorted(parse_fraction("eps", value) for value in eps)
        if radii and radii[0] == 0:
            raise InputError("eps is 0; allowed: radii above 0, because the clean point is always there")
        if self.norm == "l2":
            radii = [max(1, round(255 * r * _volume_radius(elements))) / 255 for r in radii]
        points = {format_fraction(radius): radius for radius in radii}
        return [Setting(name, radius) for name, radius in points.items()]

    def attack(
        self,
        model: AnyModel,
        x: Tensor,
        y: Tensor,
        size: float,
        *,
        stream: Callable[[], torch.Generator],
        fitting: Fitting,
    ) -> Tensor:
        """Return the changed images, begun again with less held at once each time memory runs out.

        Args:
            model: what is attacked.
            x: images.
            y: labels.
            size: radius or strength.
            stream: returns the generator, as it is at the beginning.
            fitting: knows how much fits.
        """

        def run() -> Tensor:
            if self.eot is None:
                return self.run(model, x, y, size, stream())
            return fitting.gradients(lambda held: self.run(model, x, y, size, stream(), chunk=held), self.eot)

        # Fewer draws first; then fewer images in the passes without a graph.
        return fitting.forward(model, run)


@dataclass(frozen=True)
class PlaneBudget:
    """What the plane's attacks may spend; small on purpose: a plane is many points, a headline is one."""

    steps: int = 20
    """Of PGD and transfer; their step is eps/4."""
    apgd_steps: int = 40
    """Of APGD."""
    mora_steps: int = 10
    """Of each of MORA's runs: three mixtures and two targets."""
    square_steps: int = 300
    """Candidates of Square."""
    eot: int = 4
    """Draws per gradient or candidate."""


def _volume_radius(elements: int) -> float:
    """Return the radius of the L2 ball with the volume of the cube [−1, 1]^elements."""
    log_ball = elements / 2 * math.log(math.pi) - math.lgamma(elements / 2 + 1)
    return math.exp(math.log(2) - log_ball / elements)


def threat_names() -> list[str]:
    """Return the names of all threats that `named_threats` knows."""
    return [*_threats(PlaneBudget(), ()), "corruptions", *(CORRUPTION + kind for kind in CORRUPTIONS)]


def named_threats(
    threats: Sequence[str | Threat], budget: PlaneBudget, sources: Sequence[AnyModel] = ()
) -> list[Threat]:
    """Return threats by name; `Threat`s pass as they are, and "corruptions" stands for all of them.

    Args:
        threats: names or `Threat`s, each once.
        budget: of the attacks.
        sources: models that transfer starts from; none: the attacked model's own deterministic twin.

    Raises:
        InputError: an unknown name, a name that occurs twice, or no threats.
    """
    table = _threats(budget, sources)
    found: list[Threat] = []
    for threat in threats:
        if isinstance(threat, Threat):
            found.append(threat)
        elif threat == "corruptions":
            found += [_corruption(kind) for kind in CORRUPTIONS]
        elif threat.startswith(CORRUPTION):
            check_choice("threat", threat, threat_names())
            found.append(_corruption(threat.removeprefix(CORRUPTION)))
        else:
            check_choice("threat", threat, threat_names())
            found.append(table[threat])
    names = [threat.name for threat in found]
    if not names or len(set(names)) < len(names) or CLEAN in names:
        raise InputError(f"threats are {names}; allowed: one or more, each once, and none called {CLEAN!r}")
    return found


def check_strengths(strengths: Sequence[int]) -> None:
    """Raise `InputError` unless all strengths are known and occur once."""
    if not set(strengths) <= set(STRENGTHS) or len(set(strengths)) < len(strengths) or not strengths:
        raise InputError(f"strengths is {list(strengths)!r}; allowed: some of {list(STRENGTHS)}, each once")


def _threats(b: PlaneBudget, sources: Sequence[AnyModel]) -> dict[str, Threat]:
    def pgd(norm: str) -> Run:
        def run(
            m: Any, x: Tensor, y: Tensor, eps: float, g: torch.Generator, chunk: int | None = None
        ) -> Tensor:
            return A.pgd(m, x, y, eps=eps, norm=norm, steps=b.steps, eot=b.eot, chunk=chunk, generator=g)

        return run

    def apgd(
        m: Any, x: Tensor, y: Tensor, eps: float, g: torch.Generator, chunk: int | None = None
    ) -> Tensor:
        return A.apgd(m, x, y, eps=eps, steps=b.apgd_steps, eot=b.eot, chunk=chunk, generator=g)

    def square(
        m: Any, x: Tensor, y: Tensor, eps: float, g: torch.Generator, chunk: int | None = None
    ) -> Tensor:
        return A.square(m, x, y, eps=eps, steps=b.square_steps, eot=b.eot, chunk=chunk, generator=g)

    def mora(
        m: Any, x: Tensor, y: Tensor, eps: float, g: torch.Generator, chunk: int | None = None
    ) -> Tensor:
        betas = (0.5, 0.0, 1.0)
        budget: dict[str, Any] = {"steps": b.mora_steps, "eot": b.eot, "betas": betas, "num_targets": 2}
        return A.mora(m, x, y, eps=eps, chunk=chunk, generator=g, **budget)

    def transfer(own: bool) -> Run:
        def run(
            m: Any, x: Tensor, y: Tensor, eps: float, g: torch.Generator, chunk: int | None = None
        ) -> Tensor:
            starts = members_of(m, x, g) if own else list(sources) or [deterministic_twin(m)]
            return A.transfer(starts, x, y, eps=eps, steps=b.steps, eot=b.eot, chunk=chunk, generator=g)

        return run

    def noise(norm: str) -> Run:
        return lambda _, x, __, eps, g: A.random_noise(x, eps=eps, norm=norm, generator=g)

    every = [
        Threat("linf-pgd", pgd("linf"), eot=b.eot),
        Threat("l2-pgd", pgd("l2"), "l2", b.eot),
        Threat("apgd", apgd, eot=b.eot),
        Threat("square", square, eot=b.eot),
        Threat("mora", mora, eot=b.eot),
        Threat("transfer", transfer(own=False), eot=b.eot),
        Threat("transfer-members", transfer(own=True), eot=b.eot),
        Threat("noise-linf", noise("linf")),
        Threat("noise-l2", noise("l2"), "l2"),
    ]
    return {threat.name: threat for threat in every}


def _corruption(kind: str) -> Threat:
    return Threat(CORRUPTION + kind, lambda _, x, __, s, g: corrupt(x, kind, int(s), g), "")


def deterministic_twin(model: Any) -> nn.Module:
    """Return a copy of the model whose quantizers round to the nearest level.

    Raises:
        InputError: the model is no module, so it cannot be copied: transfer then needs sources.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"transfer from the twin of a {type(model).__name__}; needed: a module, or sources")
    twin = copy.deepcopy(model)
    set_rounding(twin, "nearest")
    return twin


class _Member:
    """One member of a model, as a model with a single member."""

    def __init__(self, model: HasMemberLogits, index: int) -> None:
        self.model, self.index = model, index

    def member_logits(
        self, x: Tensor, draws: int = 1, *, generator: torch.Generator | None = None, stratified: bool = False
    ) -> Tensor:
        """Return logits (draws, 1, batch, classes)."""
        logits = self.model.member_logits(x, draws, generator=generator, stratified=stratified)
        return logits[:, self.index : self.index + 1]


def members_of(model: HasMemberLogits, x: Tensor, generator: torch.Generator) -> list[AnyModel]:
    """Return every member as a model of its own; the first image is asked how many there are."""
    with torch.no_grad():
        count = model.member_logits(x[:1], 1, generator=generator).shape[1]
    return [_Member(model, index) for index in range(count)]
