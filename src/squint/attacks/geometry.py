"""The set an attack may move in: an eps-ball around each image, cut with [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from squint._checks import InputError, check_choice, check_images, check_number

NORMS = ("linf", "l2")


class Ball:
    """The points of [0, 1] within eps of each image, in L∞ or L2 over all of an image's elements.

    Args:
        x: images (batch, ...) in [0, 1].
        eps: radius, in [0, 1] for "linf" and at least 0 for "l2".
        norm: "linf" or "l2".

    Raises:
        InputError: for images outside [0, 1], a radius out of range or an unknown norm.
    """

    def __init__(self, x: Tensor, eps: float, norm: str = "linf") -> None:
        check_images(x)
        check_choice("norm", norm, NORMS)
        self.eps = check_number("eps", eps, 0.0, 1.0 if norm == "linf" else math.inf)
        self.x = x.detach().clamp(0.0, 1.0)
        self.norm = norm
        self._low, self._high = (self.x - eps).clamp_min_(0.0), (self.x + eps).clamp_max_(1.0)

    def project(self, point: Tensor) -> Tensor:
        """Return the point moved into the ball and into [0, 1].

        L2 shrinks the perturbation and then clips; clipping towards a box that holds x only shortens it.
        """
        if self.norm == "linf":
            return torch.minimum(torch.maximum(point, self._low), self._high)
        delta = point - self.x
        length = per_example(delta.flatten(1).norm(dim=1), delta)
        return (self.x + delta * (self.eps / length.clamp_min(max(self.eps, 1e-30)))).clamp(0.0, 1.0)

    def normalise(self, gradient: Tensor) -> Tensor:
        """Return the steepest direction of unit norm: the sign for L∞, gradient / ‖gradient‖₂ for L2.

        An all-zero gradient gives zero.
        """
        if self.norm == "linf":
            return gradient.sign().to(self.x.dtype)
        # The largest element first: squares of a saturated network's gradient underflow.
        scaled = gradient / per_example(gradient.flatten(1).abs().amax(1), gradient).clamp_min(1e-300)
        length = per_example(scaled.flatten(1).norm(dim=1), scaled).clamp_min(1e-30)
        return (scaled / length).to(self.x.dtype)

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Return a point drawn uniformly from the ball, then clipped to [0, 1]."""
        shape, home = self.x.shape, generator.device
        if self.norm == "linf":
            delta = self.eps * (2 * torch.rand(shape, generator=generator, device=home) - 1)
        else:
            direction = torch.randn(shape, generator=generator, device=home)
            radius = torch.rand(shape[0], generator=generator, device=home).pow(1 / direction[0].numel())
            length = direction.flatten(1).norm(dim=1)
            delta = direction * per_example(self.eps * radius / length, direction)
        return self.project(self.x + delta.to(self.x))

    def first_point(
        self, restart: int, start: Tensor | None, random_start: bool, generator: torch.Generator
    ) -> Tensor:
        """Return where a restart begins: `start` or x first where asked for, random points otherwise."""
        if restart == 0 and start is not None:
            if start.shape != self.x.shape:
                raise InputError(f"start has shape {tuple(start.shape)}; allowed: {tuple(self.x.shape)}")
            return self.project(start.detach().to(self.x))
        if restart == 0 and not random_start:
            return self.x.clone()
        return self.random_point(generator)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Return (batch,) values shaped so that they broadcast over the examples of `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def step_sizes(first: float, last: float | None, steps: int) -> list[float]:
    """Return the step of every iteration, constant or decaying geometrically from `first` to `last`."""
    if last is None or steps == 1 or first == 0:
        return [first] * steps
    ratio = (last / first) ** (1 / (steps - 1))
    return [first * ratio**i for i in range(steps)]
