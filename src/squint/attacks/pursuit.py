"""What attacks on a detector share: the detector as it is deployed, both gradients, the best point so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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

DEPLOYMENTS, LEAST_DEPLOYMENTS = 32, 8
"""Deployments over which iterates are compared: twice the draws of a gradient, between these two."""


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
        reads_rest: whether the score reads more than the logits.
    """

    score: Callable[[Tensor], Tensor]
    threshold: float
    draws: int
    surrogate: Callable[[Tensor], Tensor] | None = None
    num_classes: int | None = None
    reads_rest: bool = True

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
        held = outputs if self.reads_rest else outputs[..., : self.num_classes]
        grouped = held.reshape(-1, self.draws, *held.shape[1:])
        folded = grouped.permute(1, 2, 0, 3, 4).flatten(2, 3)
        return score(folded).view(len(grouped), -1)


class Pursuit:
    """What the attacks share: the ball, both gradients or a blend of them, and the best point so far.

    A walk that follows no score can serve several detectors of equal draws: each has its own best point. The
    gradients are those of the first.
    """

    def __init__(
        self,
        model: AnyModel,
        x: Tensor,
        y: Tensor,
        detectors: DeployedDetector | Sequence[DeployedDetector],
        eps: float,
        step_size: float | None,
        eot: int,
        start: Tensor | None,
        check_every: int,
        generator: torch.Generator | None,
        chunk: int | None,
    ) -> None:
        self.detectors = [detectors] if isinstance(detectors, DeployedDetector) else list(detectors)
        self.detector = detector = self.detectors[0]
        check_number("draws", detector.draws, 1, whole=True)
        if eot < detector.draws or eot % detector.draws:
            raise InputError(
                f"eot is {eot!r}; allowed: a multiple of the deployed draws, {detector.draws}, "
                "since score and prediction share them"
            )
        self.ball, self.units, self.y = Ball(x, eps, "linf"), Units(model, y, eot, chunk=chunk), y
        self.start = start
        self.size = eps / 30 if step_size is None else check_number("step_size", step_size, 0.0)
        self.check_every = int(check_number("check_every", check_every, 1, whole=True))
        self.generator = generator or _random.default_generator()

    def begin(self) -> Tensor:
        """Return the start, having made it the incumbent."""
        point = self.ball.first_point(0, self.start, False, self.generator)
        compared = min(DEPLOYMENTS, max(LEAST_DEPLOYMENTS, 2 * self.units.draws))
        self._bank = Bank(self.units, self.generator, compared * self.detector.draws)
        outputs = self._bank.logits(point)
        self._best = [
            Incumbent(self._bank, partial(self._rating, detector), point, outputs)
            for detector in self.detectors
        ]
        self._checks = 0
        return point

    @property
    def found(self) -> list[Tensor]:
        """The points of the highest rating, one set per detector."""
        return [best.point for best in self._best]

    def measured(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return attacker's margin and mean score, (batch,) each; the score itself, no stand-in."""
        outputs = self.units.logits(point, _random.next_seed(self.generator)).double()
        lead = margin(outputs[..., : self.detector.num_classes], self.y)
        return lead, self.detector.scores(outputs).mean(0)

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
            for best in self._best:
                best.rescore()
        outputs = self._bank.logits(point)
        for best in self._best:
            best.compare(point, outputs)

    def _rating(self, detector: DeployedDetector, outputs: Tensor) -> Tensor:
        """Return P(wrong and unflagged); ties go to P(wrong), then to the lower score."""
        scores = detector.scores(outputs)
        wrong = detector.wrong(outputs, self.y)
        evades = (wrong & (scores <= detector.threshold)).double().mean(0)
        low = torch.sigmoid(detector.threshold - scores).mean(0)
        return evades + 1e-3 * wrong.double().mean(0) + 1e-6 * low
