"""Penalties on the input gradient: finite difference, curvature and double back-propagation (tier B).

All of them look at the network as it is deployed: at fixed noise, and normalized by statistics that do not
depend on the image. Those are the statistics of the clean training pass; they hold their graph, so that the
gradient in the weights is the whole one. Detached, they would let the clean loss move with the statistics and
the perturbed one not, and 1/h would blow the difference up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from squint.training.synchronised import batch_moments, normalized

Loss = Callable[[Tensor], Tensor]
"""Images (batch, ...) to per-example losses (batch,), with fixed noise."""


class BatchStatistics:
    """Records the batch statistics of one forward pass, and replays them in later ones.

    Attributes:
        seen: for every normalization that used its batch, the mean and biased variance (channels,) of each
            pass, in order and with their graph.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
        self.seen: dict[_BatchNorm, list[tuple[Tensor, Tensor]]] = {}

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the mean and variance of every batch that a normalization is about to use."""
        self.seen = {norm: [] for norm in self._norms if norm.training or norm.running_mean is None}
        handles = [norm.register_forward_pre_hook(self._keep) for norm in self.seen]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        x = inputs[0]
        mean, variance, _ = batch_moments(x)
        self.seen[norm].append((mean, variance))

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Normalize by the recorded statistics, in the order of the recorded passes; update nothing."""
        # The norms stay in their mode: who runs them must divide the batch as in the recorded passes.
        before = {norm: norm.__dict__.get("forward") for norm in self.seen}
        for norm, passes in self.seen.items():
            norm.forward = partial(_replayed, norm, iter(passes))  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm, forward in before.items():
                del norm.forward
                if forward is not None:
                    norm.forward = forward  # type: ignore[method-assign]


def _replayed(norm: _BatchNorm, passes: Iterator[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    return normalized(norm, x, *next(passes))


def finite_difference(loss: Loss, x: Tensor, base: Tensor, gradient: Tensor, step: float) -> Tensor:
    """Return mean [(l(x + h d) - l(x))/h]^2 with d the normalised gradient (Finlay and Oberman 2021).

    Args:
        loss: per-example loss at fixed noise and statistics.
        x: images (batch, ...).
        base: l(x), (batch,), part of the graph.
        gradient: dl/dx, detached, shaped like x.
        step: h, an L2 length in pixel units.
    """
    moved = loss(x.detach() + step * _direction(gradient))
    return ((moved - base) / step).square().mean()


def curvature(loss: Loss, x: Tensor, gradient: Tensor, step: float) -> Tensor:
    """Return mean ||dl(x + h d) - dl(x)||^2, with d the normalised gradient.

    On a quadratic loss that is h^2 ||H d||^2 (Moosavi-Dezfooli et al. 2019).

    Args:
        loss: per-example loss at fixed noise and statistics.
        x: images (batch, ...).
        gradient: dl/dx with its graph, shaped like x.
        step: h, an L2 length in pixel units.
    """
    moved = (x.detach() + step * _direction(gradient.detach())).requires_grad_()
    (other,) = torch.autograd.grad(loss(moved).sum(), moved, create_graph=True)
    return (other - gradient).flatten(1).square().sum(1).mean()


def squared_gradient(gradient: Tensor) -> Tensor:
    """Return mean ||dl/dx||^2 of a gradient that holds its graph (double back-propagation)."""
    return gradient.flatten(1).square().sum(1).mean()


def _direction(gradient: Tensor) -> Tensor:
    """Return the gradient at length 1 per example, or 0 where it vanishes."""
    return F.normalize(gradient.flatten(1), dim=1).view_as(gradient)
