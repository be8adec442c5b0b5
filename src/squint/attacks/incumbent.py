"""Per example the best point so far, with candidate and incumbent always compared on one bank of noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from squint import _random
from squint.attacks.geometry import per_example
from squint.attacks.gradients import Units, nan_found
from squint.attacks.objectives import Objective, objective


class Bank:
    """Noise that stays the same until it is renewed, so that scores on it can be compared.

    Args:
        units: the model.
        generator: source of the banks' seeds.
        draws: size of the bank; None takes the units' own number of draws.
    """

    def __init__(self, units: Units, generator: torch.Generator, draws: int | None = None) -> None:
        self._units, self._generator, self._draws = units, generator, draws
        self.renew()

    def renew(self) -> None:
        """Draw new noise. Every incumbent on this bank must be scored again."""
        self._seed = _random.next_seed(self._generator)

    def logits(self, x: Tensor) -> Tensor:
        """Return float64 logits (draws, members, batch, classes) on the present noise."""
        return self._units.logits(x, self._seed, draws=self._draws).double()


class Incumbent:
    """The best point of each example by an objective.

    A random model gives lucky scores. Candidate and incumbent therefore meet the same noise, and after the
    bank is renewed `rescore` scores the incumbent again, or one lucky score would stay for ever. A point at
    which a logit is NaN beats every other.

    Args:
        bank: the noise that both meet.
        objective: logits (draws, members, batch, classes) -> (batch,); higher is better.
        point: the first incumbent (batch, ...).
        logits: its logits on the bank where they are known already.

    Attributes:
        point: the best points so far (batch, ...).
        score: their scores (batch,) on the present bank.
    """

    def __init__(self, bank: Bank, objective: Objective, point: Tensor, logits: Tensor | None = None) -> None:
        self._bank, self._objective = bank, nan_found(objective)
        self.point = point.clone()
        if logits is None:
            self.rescore()
        else:
            self.score = self._objective(logits)

    def rescore(self) -> None:
        """Score the incumbent on the bank's present noise."""
        self.score = self._objective(self._bank.logits(self.point))

    def offer(self, candidate: Tensor) -> Tensor:
        """Keep the candidate where it beats the incumbent; return the mask (batch,) of where it did."""
        return self.compare(candidate, self._bank.logits(candidate))

    def compare(self, candidate: Tensor, logits: Tensor) -> Tensor:
        """Do as `offer`, given the candidate's logits on the bank: several incumbents can share them."""
        return self.keep(candidate, self._objective(logits))

    def keep(self, candidate: Tensor, score: Tensor) -> Tensor:
        """Keep the candidate where its score, known already, beats the incumbent's; return that mask."""
        # A NaN of finite logits loses every comparison, except against an incumbent that is NaN itself.
        better = (score > self.score) | (self.score.isnan() & ~score.isnan())
        self.point = torch.where(per_example(better, candidate), candidate, self.point)
        self.score = torch.where(better, score, self.score)
        return better


def best_of(
    units: Units, points: Sequence[Tensor], generator: torch.Generator, draws: int | None = None
) -> Tensor:
    """Return for each example the point with the highest pooled margin, all scored on one bank.

    A single point is returned as it is, without a forward pass.
    """
    if len(points) == 1:
        return points[0]
    best = Incumbent(Bank(units, generator, draws), objective("margin", units.y), points[0])
    for point in points[1:]:
        best.offer(point)
    return best.point
