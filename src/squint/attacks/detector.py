"""Attacks on a classifier and its detector at once, after Bryniarski et al. 2022, L∞.

An attack succeeds on a deployment that errs and is not flagged. Prediction and score come from the same S
draws, as deployed; gradients average the score over the deployments that `eot` draws make up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from squint import _random
from squint._checks import check_number
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import AnyModel
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import log_mean_probability, mean_cross_entropy
from squint.attacks.pursuit import DeployedDetector, Pursuit, Weigh

SEARCHES, TARGETS = 8, 3
"""Rounds of `lagrangian`, and classes that `agreement` walks to; each needs a step."""
CONFIDENCE = 0.05
"""Attacker's margin of log p̄ from which on an attack turns from the prediction to the score."""


def selective(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    detector: DeployedDetector,
    eps: float,
    steps: int = 1000,
    step_size: float | None = None,
    eot: int = 16,
    start: Tensor | None = None,
    check_every: int = 10,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the iterates most often wrong and unflagged: each step attacks the prediction or the score.

    While the margin m = ℓ_y − ℓ_c of the label is above −0.05 the step ascends −m, else it descends the
    score (selective PGD, Bryniarski et al. 2022, section 3.2). Iterates are compared over 8 to 32
    deployments, as `eot` allows.

    Args:
        model: a callable returning logits (batch, classes), or a model with `member_logits`.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        detector: what has to be evaded.
        eps: L∞ radius in [0, 1].
        steps: gradient steps.
        step_size: length of a step; None takes eps / 30.
        eot: single draws per gradient, a multiple of the detector's draws.
        start: warm start (batch, ...), projected into the ball; None begins at x. It competes itself.
        check_every: steps between two iterates that are compared.
        generator: source of all randomness; None takes squint's own stream.
        chunk: draws whose graph is held in memory at once.

    Raises:
        InputError: for a value out of range, or a model that returns NaN at the start.
    """
    check_number("steps", steps, 1, whole=True)
    with evaluation_mode(model):
        hunt = Pursuit(model, x, y, detector, eps, step_size, eot, start, check_every, generator, chunk)

        def chosen(lead: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            attacking = (lead < CONFIDENCE).to(lead)
            return attacking, attacking - 1

        def move(point: Tensor) -> Tensor:
            return hunt.stepped(point, hunt.blend(point, chosen))

        hunt.walk(hunt.begin(), steps, move)
        return hunt.found[0]


def orthogonal(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    detector: DeployedDetector,
    eps: float,
    steps: int = 1000,
    step_size: float | None = None,
    eot: int = 16,
    start: Tensor | None = None,
    check_every: int = 10,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the iterates most often wrong and unflagged: no step undoes, to first order, the other aim.

    As `selective`, but an attacking step must not raise the score and an evading step must not give up
    margin, for the step that is taken: see `orthogonal_step`. Arguments and errors are those of `selective`.
    """
    check_number("steps", steps, 1, whole=True)
    with evaluation_mode(model):
        hunt = Pursuit(model, x, y, detector, eps, step_size, eot, start, check_every, generator, chunk)

        def move(point: Tensor) -> Tensor:
            lead, f, _, g = hunt.slopes(point)
            attacking = per_example(lead < CONFIDENCE, f)
            v, o = torch.where(attacking, f, -g), torch.where(attacking, -g, f)
            return orthogonal_step(hunt.ball, point, v, o, hunt.size)

        hunt.walk(hunt.begin(), steps, move)
        return hunt.found[0]


def orthogonal_step(ball: Ball, point: Tensor, v: Tensor, o: Tensor, size: float) -> Tensor:
    """Return project(point + size · sign(v + λo)), λ ≥ 0 the smallest with ⟨o, step taken⟩ ≥ 0.

    As λ grows, elements turn from sign(v) to sign(o) one by one, at λ = |v|/|o|, and none turns back; the
    projection of a box acts on each alone. So ⟨o, step⟩ never falls, and sorting finds exactly the λ that a
    bisection would approach. Projecting in L2 and taking signs afterwards would not be orthogonal.

    Args:
        ball: an L∞ ball that holds `point`.
        point: (batch, ...).
        v: what the step is for, shaped like `point`.
        o: what it must not go against.
        size: length of the step.
    """
    up, down = ball.project(point + size), ball.project(point - size)

    def taken(direction: Tensor) -> Tensor:
        return torch.where(direction > 0, up, torch.where(direction < 0, down, point))

    wanted, turned = taken(v), taken(o)
    gain = (o * (turned.double() - wanted)).flatten(1)
    at = torch.where(gain > 0, v.abs().flatten(1) / o.abs().flatten(1), torch.inf)
    order = at.argsort(1)
    lacking = -(o * (wanted.double() - point)).flatten(1).sum(1, keepdim=True)
    before = gain.gather(1, order).clamp_min(0.0).cumsum(1).roll(1, 1)
    before[:, 0] = 0.0
    # An element turns as long as those before it have not made up for what is lacking.
    turns = torch.zeros_like(at, dtype=torch.bool).scatter(1, order, before < lacking)
    return torch.where((turns & at.isfinite()).view_as(point), turned, wanted)


def lagrangian(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    detector: DeployedDetector,
    eps: float,
    steps: int = 1000,
    searches: int = SEARCHES,
    step_size: float | None = None,
    eot: int = 16,
    start: Tensor | None = None,
    check_every: int = 10,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the iterates most often wrong and unflagged of ascent on margin − μ·score, μ searched.

    The steps are shared by `searches` rounds, each from the start. μ begins, for each example, where both
    gradients weigh the same; it grows where a round ends wrong but flagged and shrinks where it ends right,
    by factors of 4 until bracketed and by bisection of its logarithm then. Other arguments and errors are
    those of `selective`.
    """
    check_number("searches", searches, 1, whole=True)
    check_number("steps", steps, searches, whole=True)
    with evaluation_mode(model):
        hunt = Pursuit(model, x, y, detector, eps, step_size, eot, start, check_every, generator, chunk)
        begin = hunt.begin()
        _, f, _, g = hunt.slopes(begin)
        weights = f.flatten(1).abs().sum(1), g.flatten(1).abs().sum(1)
        mu = (weights[0].clamp_min(1e-12) / weights[1].clamp_min(1e-12)).clamp(1e-6, 1e6).log()
        low, high = torch.full_like(mu, -torch.inf), torch.full_like(mu, torch.inf)
        for _ in range(searches):

            def weights_of(lead: Tensor, _: Tensor, mu: Tensor = mu) -> tuple[Tensor, Tensor]:
                return torch.ones_like(lead), -mu.exp()

            def move(point: Tensor, weigh: Weigh = weights_of) -> Tensor:
                return hunt.stepped(point, hunt.blend(point, weigh))

            lead, score = hunt.measured(hunt.walk(begin, steps // searches, move))
            right, flagged = lead < 0, score > detector.threshold
            high = torch.where(right, mu, high)
            low = torch.where(~right & flagged, mu, low)
            bracketed = low.isfinite() & high.isfinite()
            unbounded = torch.where(right, mu - torch.tensor(4.0).log(), mu + torch.tensor(4.0).log())
            following = torch.where(bracketed, (low + high) / 2, unbounded)
            mu = torch.where(right | flagged, following, mu)
        return hunt.found[0]


def agreement(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    detector: DeployedDetector,
    eps: float,
    steps: int = 1000,
    num_targets: int = TARGETS,
    step_size: float | None = None,
    eot: int = 16,
    start: Tensor | None = None,
    check_every: int = 10,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the iterates most often wrong and unflagged when all draws are pushed into one wrong class.

    Descends the mean over draws and members of each one's cross-entropy to a target, so that they agree at
    high confidence, which lowers every disagreement by itself; the score's gradient is not used. The
    steps are shared by the `num_targets` likeliest wrong classes. Other arguments and errors are those of
    `selective`.
    """
    return agreements(
        model,
        x,
        y,
        detectors=[detector],
        eps=eps,
        steps=steps,
        num_targets=num_targets,
        step_size=step_size,
        eot=eot,
        start=start,
        check_every=check_every,
        generator=generator,
        chunk=chunk,
    )[0]


def agreements(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    detectors: Sequence[DeployedDetector],
    eps: float,
    steps: int = 1000,
    num_targets: int = TARGETS,
    step_size: float | None = None,
    eot: int = 16,
    start: Tensor | None = None,
    check_every: int = 10,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> list[Tensor]:
    """Return what `agreement` finds against each of several detectors, from one walk.

    The walk follows no score, so that it is the same for all; only which iterate is best differs. The
    detectors must have equal draws; other arguments and errors are those of `agreement`.
    """
    check_number("num_targets", num_targets, 1, whole=True)
    check_number("steps", steps, num_targets, whole=True)
    with evaluation_mode(model):
        hunt = Pursuit(model, x, y, detectors, eps, step_size, eot, start, check_every, generator, chunk)
        begin = hunt.begin()
        for target in _targets(hunt, num_targets):

            def move(point: Tensor, target: Tensor = target) -> Tensor:
                def agree(outputs: Tensor) -> Tensor:
                    return mean_cross_entropy(outputs[..., : hunt.detector.num_classes], y, targets=target)

                _, slope = hunt.units.gradient(point, agree, _random.next_seed(hunt.generator))
                return hunt.stepped(point, slope.nan_to_num(0.0, 0.0, 0.0))

            hunt.walk(begin, steps // num_targets, move)
        return hunt.found


def _targets(hunt: Pursuit, count: int) -> Tensor:
    """Return (targets, batch): the likeliest wrong classes, of those outputs that are logits."""
    outputs = hunt.units.logits(hunt.ball.x, _random.next_seed(hunt.generator)).double()
    log_p = log_mean_probability(outputs[..., : hunt.detector.num_classes])
    wrong = log_p.scatter(-1, hunt.y.long().unsqueeze(-1), -torch.inf)
    return wrong.topk(min(count, log_p.shape[-1] - 1), dim=-1).indices.T
