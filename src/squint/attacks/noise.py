"""Random noise of the attacks' own norm: the control that every attack must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from squint import _random
from squint.attacks.geometry import Ball, per_example


def random_noise(
    x: Tensor, *, eps: float, norm: str = "linf", generator: torch.Generator | None = None
) -> Tensor:
    """Return x plus noise of norm eps, clipped to [0, 1]: random signs (L∞) or a Gaussian direction (L2).

    Args:
        x: images (batch, ...) in [0, 1].
        eps: norm of the noise before clipping.
        norm: "linf" or "l2".
        generator: source of the noise; None takes squint's own stream.

    Raises:
        InputError: for images outside [0, 1], a radius out of range or an unknown norm.
    """
    ball = Ball(x, eps, norm)
    generator = generator or _random.default_generator()
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(ball.x)
    if norm == "linf":
        return ball.project(ball.x + eps * noise.sign())
    return ball.project(ball.x + noise * per_example(eps / noise.flatten(1).norm(dim=1), noise))
