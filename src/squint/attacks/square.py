"""Square attack, Andriushchenko et al. 2020: random search with square windows, for a random output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from squint import _random
from squint._checks import InputError, check_number
from squint.attacks.geometry import Ball, per_example
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.incumbent import Bank, Incumbent
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Candidates, out of 10,000, after which the share of changed pixels is halved."""


def square(
    model: AnyModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 5000,
    eot: int = 1,
    p_init: float = 0.8,
    renew_every: int = 50,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the points of the highest pooled margin that random search with square windows has found.

    Uses no gradient. A candidate replaces the incumbent where its margin, over the same `eot` draws of noise,
    is higher; every `renew_every` candidates the noise is renewed and the incumbent scored again. There is no
    early stop. `steps` candidates cost (1 + steps + steps / renew_every) · eot forward passes.

    Args:
        model: a callable returning logits (batch, classes), or a model with `member_logits`.
        x: images (batch, channels, height, width) in [0, 1].
        y: labels (batch,).
        eps: radius, in [0, 1] for "linf" and at least 0 for "l2".
        norm: "linf" or "l2".
        steps: candidates.
        eot: single draws per evaluation.
        p_init: share of the pixels that the first windows cover, in (0, 1].
        renew_every: candidates between two banks of noise.
        generator: source of all randomness; None takes squint's own stream.
        start: warm start (batch, ...), projected into the ball; None begins with stripes (L∞) or tiles (L2).
        chunk: draws that are evaluated at once in a model with `member_logits`.

    Raises:
        InputError: for a value out of range, images that are not 4-dimensional, or NaN from the model.
    """
    ball = Ball(x, eps, norm)
    if x.ndim != 4:
        raise InputError(f"images have shape {tuple(x.shape)}; square needs (batch, channels, height, width)")
    units = Units(model, y, eot, chunk=chunk)
    check_number("steps", steps, 1, whole=True)
    check_number("renew_every", renew_every, 1, whole=True)
    check_number("p_init", p_init, 0.0, 1.0, open_low=True)
    generator = generator or _random.default_generator()
    search = _LinfWindows(ball, generator) if norm == "linf" else _L2Windows(ball, generator)
    with evaluation_mode(model):
        begin = search.begin() if start is None else ball.first_point(0, start, False, generator)
        bank = Bank(units, generator)
        best = Incumbent(bank, objective("margin", y), begin)
        for step in range(steps):
            if step and step % renew_every == 0:
                bank.renew()
                best.rescore()
            best.offer(search.propose(best.point, changed_share(p_init, step, steps)))
    return best.point


def changed_share(p_init: float, step: int, steps: int) -> float:
    """Return the share of pixels that a window covers, halved on the paper's schedule."""
    return float(p_init / 2 ** sum(step * 10_000 // steps > after for after in _HALVINGS))


class _Windows:
    """Random square windows, one for each image."""

    def __init__(self, ball: Ball, generator: torch.Generator) -> None:
        self.ball, self.generator = ball, generator
        self.batch, self.channels, self.height, self.width = ball.x.shape
        self.rows = torch.arange(self.batch, device=ball.x.device)[:, None, None]

    def integers(self, high: int, *shape: int) -> Tensor:
        drawn = torch.randint(high, shape, generator=self.generator, device=self.generator.device)
        return drawn.to(self.ball.x.device)

    def signs(self, *shape: int) -> Tensor:
        return (self.integers(2, *shape) * 2 - 1).to(self.ball.x.dtype)

    def side(self, share: float, least: int) -> int:
        """Return the side of a window that covers `share` of the image, at least `least` where it fits."""
        side = max(round(math.sqrt(share * self.height * self.width)), least)
        return min(side, self.height, self.width)

    def place(self, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices of one random window per image, which select (batch, side, side, channels)."""
        reach = torch.arange(side, device=self.ball.x.device)
        top = self.integers(self.height - side + 1, self.batch, 1)
        left = self.integers(self.width - side + 1, self.batch, 1)
        return self.rows, (top + reach)[:, :, None], (left + reach)[:, None, :]


class _LinfWindows(_Windows):
    """Windows in which each channel takes +eps or −eps."""

    def begin(self) -> Tensor:
        """Return x with vertical stripes of ±eps."""
        stripes = self.signs(self.batch, self.channels, 1, self.width)
        return self.ball.project(self.ball.x + self.ball.eps * stripes)

    def propose(self, point: Tensor, share: float) -> Tensor:
        """Return the point with one window per image set to ±eps around x."""
        side = self.side(share, 1)
        delta = (point - self.ball.x).permute(0, 2, 3, 1).clone()
        delta[self.place(side)] = self.ball.eps * self.signs(self.batch, 1, 1, self.channels)
        return self.ball.project(self.ball.x + delta.permute(0, 3, 1, 2))


class _L2Windows(_Windows):
    """Windows that gather the budget of another window, in the shape of two opposite peaks."""

    def begin(self) -> Tensor:
        """Return x with a tiling of peaks of random sign, of norm eps."""
        side = max(min(self.height, self.width) // 5, 1)
        peaks = _peaks(side).to(self.ball.x)
        down, across = self.height // side, self.width // side
        signs = self.signs(self.batch, self.channels, down, across)
        tiles = torch.einsum("bcij,kl->bcikjl", signs, peaks)
        delta = torch.zeros_like(self.ball.x)
        delta[:, :, : down * side, : across * side] = tiles.reshape(
            self.batch, self.channels, down * side, across * side
        )
        return self._full(delta)

    def propose(self, point: Tensor, share: float) -> Tensor:
        """Return the point with one window emptied and its budget spent in another."""
        side = self.side(share, 3)
        source, sink = self.place(side), self.place(side)
        delta = (point - self.ball.x).permute(0, 2, 3, 1).clone()
        total = delta.flatten(1).square().sum(1)
        old = delta[sink]
        emptied = delta.clone()
        emptied[source] = 0.0
        emptied[sink] = 0.0
        free = total - emptied.flatten(1).square().sum(1) + (self.ball.eps**2 - total).clamp_min(0.0)
        peaks = _peaks(side).to(delta)
        peaks = peaks.T if int(self.integers(2)) else peaks
        held = old / per_example(old.flatten(1).norm(dim=1), old).clamp_min(1e-12)
        fresh = peaks[None, :, :, None] * self.signs(self.batch, 1, 1, self.channels) + held
        norms = fresh.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        emptied[sink] = fresh / norms * per_example((free / self.channels).sqrt(), fresh)
        return self._full(emptied.permute(0, 3, 1, 2))

    def _full(self, delta: Tensor) -> Tensor:
        length = per_example(delta.flatten(1).norm(dim=1), delta).clamp_min(1e-12)
        return self.ball.project(self.ball.x + delta * (self.ball.eps / length))


def _peaks(side: int) -> Tensor:
    """Return (side, side) of norm one: a positive peak over a negative one, falling off as nested boxes."""
    if side == 1:
        return torch.ones(1, 1)
    upper = side // 2
    both = torch.cat([_boxes(upper, side), -_boxes(side - upper, side)])
    return both.div(both.norm())


def _boxes(height: int, width: int) -> Tensor:
    """Return (height, width) of norm one: the sum of centred boxes of half-width r, weighted 1 / (r + 1)²."""
    down = (torch.arange(height) - height // 2).abs()[:, None]
    across = (torch.arange(width) - width // 2).abs()[None, :]
    ring = torch.maximum(down, across)
    total: Tensor = torch.zeros(height, width)
    for radius in range(int(ring.max()) + 1):
        total += (ring <= radius) / (radius + 1) ** 2
    return total.div(total.norm())
