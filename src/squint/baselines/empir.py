"""EMPIR: a full-precision network and low-precision ones that vote.

Sen, Ravindran and Raghunathan 2020, "EMPIR: Ensembles of Mixed Precision Deep Networks for Increased
Robustness against Adversarial Attacks", ICLR, arXiv:2004.10162. The members are trained apart and quantized
as in DoReFa; the class with most votes is the prediction:

    y(x) = argmax_c sum_m 1[argmax_j p_m(j | x) = c]

From the paper, its CIFAR-10 ensemble: weights of 4 bits with activations of 2, weights and activations of 2
bits, and full precision. Its published clean accuracy there is 72.6 %; Tramer et al. 2020 ("On adaptive
attacks to adversarial example defenses", section on EMPIR) bring it to a few percent by PGD on the members'
mean probability, which is what attacks ascend here; the vote is what is scored. What departs: all members
train in one loop (their losses share no parameter, so only the clipping of the gradient and the learning
rate are shared); a tie goes to the tied class with the largest mean probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import nn

from squint._checks import InputError
from squint.baselines.dorefa import Dorefa
from squint.baselines.rival import OPTIONS, Rival, Setup
from squint.baselines.voting import VotingEnsemble
from squint.ensemble import Ensemble


@dataclass(config=OPTIONS)
class Empir(Rival):
    """Members of mixed precision that vote."""

    name: ClassVar[str] = "empir"
    own_layers: ClassVar[bool] = True
    precisions: tuple[tuple[int, int] | None, ...] = Field(default=((4, 2), (2, 2), None), min_length=1)
    """Bits of weights and of activations of each member; null for full precision."""

    @field_validator("precisions")
    @classmethod
    def _precisions(cls, value: tuple[tuple[int, int] | None, ...]) -> tuple[tuple[int, int] | None, ...]:
        for pair in value:
            if pair is not None:
                Dorefa(*pair)
        if len(set(value)) < 2:
            raise InputError("allowed: two different precisions or more, which is what EMPIR is about")
        return value

    def check(self, setup: Setup) -> None:
        """Raise `InputError` where the configuration does not fit: the members are the rival's own."""
        super().check(setup)
        if setup.members not in (1, len(self.precisions)):
            raise InputError(
                f"members has {setup.members} entries; rival empir allowed: none, "
                f"because its precisions name its {len(self.precisions)} members"
            )

    def member_count(self, configured: int) -> int:
        """Return the number of precisions."""
        del configured
        return len(self.precisions)

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network in the precision of its place."""
        pair = self.precisions[place]
        return network if pair is None else Dorefa(*pair).member(network, place)

    def ensemble(self, members: Sequence[nn.Module], draws: int) -> Ensemble:
        """Return the members as an ensemble that votes."""
        return VotingEnsemble(members, draws)
