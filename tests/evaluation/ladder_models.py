"""Models whose worst case or whose chance of an error is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import squint
from squint import _random
from squint.quantize import calibrate, quantize


class NoisyPair(nn.Module):
    """Two classes, logits ±w·(x + scale·n − ½)/2 of every member; n fresh uniform noise of each draw.

    Whatever the noise, the margin w·(x + scale·n − ½) is least, in an L∞ ball, at x − eps·sign(w) for label
    1: the worst case under every scoring rule.
    """

    draws = 4

    def __init__(self, features: int = 16, *, members: int = 2, scale: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(features, generator=generator)
        self.weight = nn.Parameter(w.sign() * (w.abs() + 0.1))
        self.members_count, self.scale = members, scale
        self.largest = 10**9

    def forward(self, x: Tensor) -> Tensor:
        return self.member_logits(x, self.draws).softmax(-1).mean((0, 1)).log()

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del stratified
        if torch.is_grad_enabled() and draws > self.largest:
            raise RuntimeError(f"out of memory: {draws} draws")
        generator = generator or _random.default_generator()
        flat = x.flatten(1)
        n = torch.rand(draws, self.members_count, *flat.shape, generator=generator) - 0.5
        margin = (flat + self.scale * n - 0.5) @ self.weight
        return torch.stack([-margin, margin], -1) / 2

    def worst(self, x: Tensor, y: Tensor, eps: float) -> Tensor:
        """Return the worst point of the ball around interior images."""
        sign = (2 * y - 1).view(-1, *[1] * (x.ndim - 1)) * self.weight.detach().sign().view(x.shape[1:])
        return x - eps * sign


class Coin(nn.Module):
    """Says class 1 with chance `p` in each draw of each image and class 0 otherwise, whatever the image."""

    def __init__(self, p: float, draws: int = 1) -> None:
        super().__init__()
        self.p, self.draws = p, draws

    def forward(self, x: Tensor) -> Tensor:
        return self.member_logits(x, self.draws).softmax(-1).mean((0, 1)).log()

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del stratified
        generator = generator or _random.default_generator()
        said = (torch.rand(draws, 1, len(x), generator=generator) < self.p).to(x) * 20 - 10
        return torch.stack([-said, said], -1) + 0 * x.flatten(1).sum(1)[:, None]


def pair_data(model: NoisyPair, n: int, margin: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 4, 4) around ½, with labels, whose noiseless margin is `margin` for the label."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=generator)
    w = model.weight.detach()
    flat = 0.04 * (torch.rand(n, len(w), generator=generator) - 0.5)
    wanted = margin * (2 * y - 1)
    flat += (wanted - flat @ w)[:, None] * w / w.dot(w)
    return (0.5 + flat).view(n, 1, 4, 4), y


def small_ensemble(members: int = 3, hidden: int = 6, seed: int = 0) -> squint.Ensemble:
    """Return an untrained ensemble of quantized two-layer networks on (1, 4, 4) images, four classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(32, 1, 4, 4, generator=generator)
    nets = []
    for _ in range(members):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 4))
        for layer in net:
            if isinstance(layer, nn.Linear):
                with torch.no_grad():
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 2)
                    layer.bias.zero_()
        quantized = quantize(net.eval(), 4, 3, 3, first_last_bits=4)
        calibrate(quantized, images)
        nets.append(quantized)
    return squint.Ensemble(nets, draws=2).eval()
