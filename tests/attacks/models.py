"""Models whose optimal perturbation, or whose expectation, is known in closed form."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from squint import _random

WORDS = 2**16


def interior_images(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return images in [0.3, 0.7], so that small balls never meet the ends of [0, 1]."""
    return 0.3 + 0.4 * torch.rand(shape, generator=generator)


class Linear(nn.Module):
    """Logits W x + b, with a count of forward calls and of the modes they ran in."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        features = int(torch.tensor(shape).prod())
        self.weight = nn.Parameter(torch.randn(num_classes, features, generator=generator))
        self.part = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
        self.calls = 0
        self.trained = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.trained |= self.training or self.part[1].training
        logits: Tensor = nn.functional.linear(self.part(x), self.weight)
        return logits

    def worst_margins(self, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
        """Return min over the ball of w_y·x − w_c·x (batch, classes) for every class c, inf for c = y."""
        weight = self.weight.detach()
        logits = x.flatten(1) @ weight.T
        dual = 1 if norm == "linf" else 2
        gap = logits.gather(1, y[:, None]) - logits
        reach: Tensor = (weight[y][:, None] - weight[None]).norm(dual, dim=2)
        worst: Tensor = gap - eps * reach
        return worst.scatter(1, y[:, None], torch.inf)


class NoisyLinear(nn.Module):
    """Member logits W_m (x + scale·n), n uniform noise from squint's context, one stream per draw."""

    def __init__(self, members: int, features: int, num_classes: int, scale: float, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(members, num_classes, features, generator=generator))
        self.scale = scale
        self.units: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        """One draw of the first member, under the noise context that is in force."""
        self.units.append(1)
        return self._noisy(x, self.weight[0])

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        generator = generator or _random.default_generator()
        self.units.append(draws)
        seeds, shared = _random.draw_seeds(generator, draws)
        outputs = []
        for weight in self.weight:
            with _random.draw_noise(
                seeds, strata=range(draws) if stratified else None, strata_total=draws, shared_seed=shared
            ):
                folded = x.repeat(draws, *(1,) * (x.ndim - 1))
                outputs.append(self._noisy(folded, weight).view(draws, len(x), -1))
        return torch.stack(outputs, 1)

    def _noisy(self, x: Tensor, weight: Tensor) -> Tensor:
        flat = x.flatten(1)
        k = _random.random_integers(flat.shape, flat.device)
        return (flat + self.scale * (k + 0.5) / WORDS) @ weight.T


class Member(nn.Module):
    """Deterministic members with weights (members, classes, features) on x − ½."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.member_logits(x)[0].softmax(-1).mean(0).log()

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del generator, stratified
        return ((x.flatten(1) - 0.5) @ self.weight.transpose(1, 2)).expand(draws, -1, -1, -1)


def mlp(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    """Return an untrained ReLU network with reproducible weights, on images of any shape."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) * (2 / fan_in) ** 0.5)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
