"""InfoNCE and CLUB, the two neural bounds, with critics and their training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from squint._checks import InputError, InputTypeError, check_number
from squint._random import default_generator
from squint.information._inputs import check_pair

Critic = Callable[[Tensor, Tensor], Tensor]
"""Scores (n, n) for (n, d1) and (n, d2): entry (i, j) is for row i of the first and row j of the second."""


def infonce(z1: Tensor, z2: Tensor, critic: Critic) -> Tensor:
    """Return log n + mean_i log softmax_j(f(z1_i, z2_j))_i, a scalar in nats: a lower bound in expectation.

    Never minimise it: lowering a lower bound lowers nothing. At most log n, so strong dependence is missed
    (bias −(I − log n) at least); tight as n grows for f the log density ratio plus any function of z1.
    Differentiable in the critic and both variables; O(n²) scores. One row gives 0. Evaluate on rows that the
    critic was not fitted on. Source: van den Oord et al. 2018; Poole et al. 2019, equation 12.

    Args:
        z1: (n, d1).
        z2: (n, d2).
        critic: maps both to scores (n, n).

    Raises:
        InputError: an argument is bad (named), or the scores are not finite and (n, n).
    """
    scores = _scores(z1, z2, critic)
    return (scores.log_softmax(1).diagonal()).mean() + math.log(scores.shape[0])


def club(z1: Tensor, z2: Tensor, critic: Critic) -> Tensor:
    """Return mean log q(z2_i | z1_i) − mean_{i≠j} log q(z2_j | z1_i), a scalar in nats: an upper bound.

    The bound holds in expectation where the critic is the true conditional log-density, or near enough; for
    correlated Gaussians it is then ρ²/(1 − ρ²) per dimension, well above the information. With a poor critic
    it is no bound at all. Unbiased for that expectation at every n ≥ 2, for it leaves i = j out of the second
    mean (the paper keeps it in, a factor (n − 1)/n). One row gives 0. Differentiable; O(n²) scores. Source:
    Cheng et al. 2020, equations 7 and 12.

    Args:
        z1: (n, d1).
        z2: (n, d2).
        critic: maps both to log q(z2_j | z1_i) at (i, j).

    Raises:
        InputError: an argument is bad (named), or the scores are not finite and (n, n).
    """
    scores = _scores(z1, z2, critic)
    n = scores.shape[0]
    together = scores.diagonal().mean()
    if n == 1:
        return together - together
    return (together - scores.mean()) * (n / (n - 1))


class SeparableCritic(nn.Module):
    """A critic f(z1) · g(z2) of two perceptrons with one hidden layer, for InfoNCE.

    Args:
        dim1: features of the first variable.
        dim2: features of the second.
        hidden: width of the hidden layers.
        embedding: dimension in which the two meet.
        generator: CPU generator of the initial weights; None: squint's own.
    """

    def __init__(
        self,
        dim1: int,
        dim2: int,
        *,
        hidden: int = 64,
        embedding: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.first = _perceptron(dim1, hidden, embedding, generator)
        self.second = _perceptron(dim2, hidden, embedding, generator)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return scores (n, n)."""
        _check_width("z1", z1, self.first[0].in_features)
        _check_width("z2", z2, self.second[0].in_features)
        f: Tensor = self.first(z1)
        g: Tensor = self.second(z2)
        return f @ g.mT

    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return −InfoNCE of the batch, a scalar."""
        return -infonce(z1, z2, self)


class GaussianCritic(nn.Module):
    """The conditional log-density of a diagonal Gaussian, its moments from perceptrons, for CLUB.

    Log-variances stay within ±8, so that a determined variable does not send the density to infinity.

    Args:
        dim1: features of the variable that is given.
        dim2: features of the one that is predicted.
        hidden: width of the hidden layers.
        generator: CPU generator of the initial weights; None: squint's own.
    """

    def __init__(
        self, dim1: int, dim2: int, *, hidden: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.mean = _perceptron(dim1, hidden, dim2, generator)
        self.log_variance = _perceptron(dim1, hidden, dim2, generator)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return log q(z2_j | z1_i), (n, n)."""
        _check_width("z2", z2, self.mean[-1].out_features)
        mean, log_variance = self._moments(z1)
        return _log_normal(z2.unsqueeze(0), mean.unsqueeze(1), log_variance.unsqueeze(1))

    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of pairs that belong together, a scalar."""
        mean, log_variance = self._moments(z1)
        return -_log_normal(z2, mean, log_variance).mean()

    def _moments(self, z1: Tensor) -> tuple[Tensor, Tensor]:
        _check_width("z1", z1, self.mean[0].in_features)
        mean: Tensor = self.mean(z1)
        raw: Tensor = self.log_variance(z1)
        return mean, 8 * torch.tanh(raw / 8)


def fit_critic(
    critic: SeparableCritic | GaussianCritic,
    z1: Tensor,
    z2: Tensor,
    *,
    generator: torch.Generator,
    steps: int = 500,
    batch: int = 128,
    learning_rate: float = 5e-3,
) -> float:
    """Return the last training loss after fitting the critic in place with Adam on random minibatches.

    Args:
        critic: trained in place.
        z1: (n, d1), detached.
        z2: (n, d2), detached.
        generator: CPU generator of the minibatches.
        steps: updates.
        batch: rows per update, at most n.
        learning_rate: Adam's, falling to 0 along a cosine.

    Raises:
        InputError: an argument is bad (named).
    """
    z1, z2 = (z.detach() for z in check_pair(z1, z2, minimum=2))
    check_number("steps", steps, 1, whole=True)
    rows = min(int(check_number("batch", batch, 2, whole=True)), z1.shape[0])
    optimizer = torch.optim.Adam(critic.parameters(), lr=learning_rate)
    value = math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randperm(z1.shape[0], generator=generator)[:rows].to(z1.device)
        loss = critic.loss(z1[chosen], z2[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = float(loss.detach())
    return value


def _scores(z1: Tensor, z2: Tensor, critic: Critic) -> Tensor:
    z1, z2 = check_pair(z1, z2)
    if not callable(critic):
        raise InputTypeError(f"critic must be callable, got {type(critic).__name__}")
    scores = critic(z1, z2)
    n = z1.shape[0]
    if not isinstance(scores, Tensor):
        raise InputTypeError(f"critic returned {type(scores).__name__}; needed: scores ({n}, {n}), a tensor")
    if not scores.is_floating_point():
        raise InputError(f"critic returned {scores.dtype}; needed: floating point scores")
    if tuple(scores.shape) != (n, n) or not bool(torch.isfinite(scores.detach()).all()):
        raise InputError(f"critic returned shape {tuple(scores.shape)}; allowed: finite scores ({n}, {n})")
    return scores


def _check_width(name: str, z: Tensor, width: object) -> None:
    if z.shape[-1] != width:
        raise InputError(
            f"{name} has {z.shape[-1]} features; allowed: {width}, which its critic was made for"
        )


def _log_normal(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    squares = (x - mean).square() * (-log_variance).exp()
    return -(squares + log_variance + math.log(2 * math.pi)).sum(-1) / 2


def _perceptron(inputs: int, hidden: int, outputs: int, generator: torch.Generator | None) -> nn.Sequential:
    """Return a perceptron initialised from `generator`: torch's layers would draw from the global one."""
    source = default_generator() if generator is None else generator
    layers = [
        nn.Linear(i, o, device="meta").to_empty(device="cpu")
        for i, o in ((inputs, hidden), (hidden, outputs))
    ]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight, generator=source)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])
