"""What attacks on a detector share: the detector as it is deployed, both gradients, the best point so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from squint import _random
from squint._checks import InputError, check_number
from squint.attacks.geometry import Ball
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.incumbent import Bank, Incumbent
from squint.attacks.objectives import margin

Weigh = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Attacker's margin (batch,) and mean score (batch,) -> weights of their gradients, (batch,) each."""

DEPLOYMENTS = 32
"""Deployments over which iterates are compared."""


@dataclass(frozen=True)
class DeployedDetector:
    """A detector as its attacker knows it.

    Attributes:
        score: outputs (draws, members, batch, width) of one deployment -> (batch,), high where suspicious;
            each example's score depends on that example alone.
        threshold: deployments with a score above it are flagged.
        draws: draws S of one deployment.
        surrogate: a smooth stand-in for a score that has no gradient (votes); None: the score itself.
        num_classes: how many of the outputs are logits, the rest being what only the score reads; None: all.
    """

    score: Callable[[Tensor], Tensor]
    threshold: float
    draws: int
    surrogate: Callable[[Tensor], Tensor] | None = None
    num_classes: int | None = None

    def scores(self, outputs: Tensor) -> Tensor:
        """Return (deployments, batch) scores of outputs (deployments · draws, members, batch, width)."""
        return self._each(self.score, outputs)

    def surrogates(self, outputs: Tensor) -> Tensor:
        """Return (deployments, batch) differentiable scores."""
        return self._each(self.surrogate or self.score, outputs)

    def wrong(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return (deployments, batch): whether the mean probability of a deployment misses the label."""
        probabilities = outputs[..., : self.num_classes].double().softmax(-1).mean(1)
        deployed = probabilities.view(-1, self.draws, *probabilities.shape[1:]).mean(1)
        return deployed.argmax(-1) != y

    def evades(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return (deployments, batch): whether a deployment errs and is not flagged."""
        return self.wrong(outputs, y) & (self.scores(outputs) <= self.threshold)

    def _each(self, score: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
        # Scores look at one example at a time, so the deployments can stand in for a longer batch.
        grouped = outputs.view(-1, self.draws, *outputs.shape[1:])
        folded = grouped.permute(1, 2, 0, 3, 4).flatten(2, 3)
        return score(folded).view(len(grouped), -1)


class Pursuit:
    """What the attacks share: the ball, both gradients or a blend of them, and the best point so far."""

    def __init__(
        self,
        model: AnyModel,
        x: Tensor,
        y: Tensor,
        detector: DeployedDetector,
        eps: float,
        step_size: float | None,
        eot: int,
        start: Tensor | None,
        check_every: int,
        generator: torch.Generator | None,
        chunk: int | None,
    ) -> None:
        check_number("draws", detector.draws, 1, whole=True)
        if eot < detector.draws or eot % detector.draws:
            raise InputError(
                f"eot is {eot!r}; allowed: a multiple of the deployed draws, {detector.draws}, "
                "since score and prediction share them"
            )
        self.ball, self.units, self.y = Ball(x, eps, "linf"), Units(model, y, eot, chunk=chunk), y
        self.detector, self.start = detector, start
        self.size = eps / 30 if step_size is None else check_number("step_size", step_size, 0.0)
        self.check_every = int(check_number("check_every", check_every, 1, whole=True))
        self.generator = generator or _random.default_generator()

    def begin(self) -> Tensor:
        """Return the start, having made it the incumbent."""
        point = self.ball.first_point(0, self.start, False, self.generator)
        self._bank = Bank(self.units, self.generator, DEPLOYMENTS * self.detector.draws)
        self._best, self._checks = Incumbent(self._bank, self._rating, point), 0
        return point

    @property
    def found(self) -> Tensor:
        """The points of the highest rating."""
        return self._best.point

    def slopes(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return attacker's margin (batch,), its gradient f, mean score (batch,) and its gradient g."""
        values, slopes = self.units.gradients(point, self._aims, _random.next_seed(self.generator))
        slopes = slopes.nan_to_num(0.0, 0.0, 0.0)
        return values[0], slopes[0], values[1], slopes[1]

    def blend(self, point: Tensor, weigh: Weigh) -> Tensor:
        """Return a·f + b·g of the gradients f of the margin and g of the score, from one backward pass.

        They are blended where the network ends, per example and each made finite first, so that the network
        is gone back through once and not twice.

        Args:
            point: (batch, ...).
            weigh: gives the weights a and b.
        """

        def blended(outputs: Tensor) -> Tensor:
            leaf = outputs.detach().requires_grad_()
            aims = self._aims(leaf)
            ends = [torch.autograd.grad(aim.sum(), leaf, retain_graph=True)[0] for aim in aims]
            parts = [
                weight.unsqueeze(-1) * end.nan_to_num(0.0, 0.0, 0.0)
                for weight, end in zip(weigh(*aims.detach()), ends, strict=True)
            ]
            return ((parts[0] + parts[1]) * outputs).sum((0, 1, 3))

        _, slope = self.units.gradient(point, blended, _random.next_seed(self.generator))
        return slope.nan_to_num(0.0, 0.0, 0.0)

    def _aims(self, outputs: Tensor) -> Tensor:
        """Return (2, batch): the attacker's margin and the mean score."""
        pooled = margin(outputs[..., : self.detector.num_classes], self.y)
        return torch.stack([pooled, self.detector.surrogates(outputs).mean(0)])

    def walk(self, point: Tensor, steps: int, move: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the last of `steps` iterates; every few of them challenge the incumbent."""
        for step in range(1, steps + 1):
            point = move(point)
            if step % self.check_every == 0 or step == steps:
                self._check(point)
        return point

    def stepped(self, point: Tensor, direction: Tensor) -> Tensor:
        """Return the point after a sign step, projected."""
        return self.ball.project(point + self.size * direction.sign().to(point))

    def _check(self, point: Tensor) -> None:
        self._checks += 1
        if self._checks % 5 == 0:
            self._bank.renew()
            self._best.rescore()
        self._best.offer(point)

    def _rating(self, outputs: Tensor) -> Tensor:
        """Return P(wrong and unflagged); ties go to P(wrong), then to the lower score."""
        scores = self.detector.scores(outputs)
        wrong = self.detector.wrong(outputs, self.y)
        evades = (wrong & (scores <= self.detector.threshold)).double().mean(0)
        low = torch.sigmoid(self.detector.threshold - scores).mean(0)
        return evades + 1e-3 * wrong.double().mean(0) + 1e-6 * low
