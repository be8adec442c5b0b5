"""What a rival is: its options, the networks and the loss that it brings, and what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, cast

from pydantic import ConfigDict
from torch import nn

from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.training import EnsembleObjective, Objective, ObjectiveConfig

OPTIONS = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
"""How every rival's options are checked."""


@dataclass(frozen=True)
class Setup:
    """What a study gives to the rival of one of its systems.

    Attributes:
        members: members of the system.
        quantized: whether the system asks for any of them to be quantized.
        draws: noise samples per member of the deployed prediction.
        training_draws: noise samples per member and training step.
        objective: the system's own coefficients of the loss.
        eps: L-infinity radius of the study's headline.
        total_steps: length of the training, or of its first cycle; 0 where it is not known yet.
    """

    members: int = 1
    quantized: bool = False
    draws: int = 1
    training_draws: int = 1
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    eps: float = 0.0
    total_steps: int = 0


class Rival:
    """A defence to compare with. Its fields are its options; here is what those that change nothing do.

    Attributes:
        name: as recipes write it.
        own_loss: whether it brings a loss, which then takes the place of the system's.
        own_layers: whether it changes the layers of a full-precision network.
        least_members: members without which it cannot be.
        least_draws: training draws without which it cannot be.
    """

    name: ClassVar[str]
    own_loss: ClassVar[bool] = False
    own_layers: ClassVar[bool] = False
    least_members: ClassVar[int] = 1
    least_draws: ClassVar[int] = 1

    @property
    def tier(self) -> str:
        """The training tier: A, B or C, see `squint.ObjectiveConfig.tier`."""
        return "A"

    def check(self, setup: Setup) -> None:
        """Raise `InputError` with the reason where a configuration lacks what the rival needs."""
        if setup.members < self.least_members:
            raise InputError(
                f"members has {setup.members} entries; rival {self.name} allowed: {self.least_members} or "
                "more, which its loss compares"
            )
        if setup.training_draws < self.least_draws:
            raise InputError(
                f"training_draws is {setup.training_draws}; rival {self.name} allowed: {self.least_draws} or "
                "more, which its loss compares"
            )
        if self.own_layers and setup.quantized:
            raise InputError(
                f"members ask for quantization; rival {self.name} allowed: members without it ({{}}), "
                "because it changes the layers itself"
            )
        if self.own_loss and setup.objective != ObjectiveConfig():
            changed = [
                f.name
                for f in fields(ObjectiveConfig)
                if getattr(setup.objective, f.name) != getattr(ObjectiveConfig(), f.name)
            ]
            raise InputError(
                f"objective sets {', '.join(changed)}; rival {self.name} allowed: none, "
                "because it brings its own loss"
            )

    def member_count(self, configured: int) -> int:
        """Return how many members the rival has where the system names `configured`."""
        return configured

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the rival's member made of a fresh network of the study; may change the network."""
        del place
        return network

    def ensemble(self, members: Sequence[nn.Module], draws: int) -> Ensemble:
        """Return the members as they are deployed."""
        return Ensemble(members, draws)

    def objective(self, setup: Setup) -> Objective:
        """Return the training loss, which maps (ens, x, y, step) to named terms."""
        return EnsembleObjective(setup.objective, setup.training_draws, setup.total_steps)

    def passes_per_step(self, members: int, draws: int) -> int:
        """Return the forward passes of one training step, each of one member under one draw over the batch.

        The gradient of a pass is counted with it.
        """
        return members * draws

    def plain(self) -> dict[str, Any]:
        """Return name and options as plain data, from which `baselines.make_rival` makes it again."""
        return {"name": self.name, "options": asdict(cast(Any, self))}
