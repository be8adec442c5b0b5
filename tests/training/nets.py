"""Small networks and data that training is tried on."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

import squint
from squint.ensemble import Ensemble


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_data(n: int = 48) -> tuple[Tensor, Tensor]:
    """Images whose class is the brightest of three columns."""
    generator = source(5)
    y = torch.randint(3, (n,), generator=generator)
    x = 0.6 * torch.rand(n, 1, 3, 3, generator=generator)
    x[torch.arange(n), 0, :, y] += 0.4
    return x, y


def network(seed: int, *, norm: bool = True, dropout: float = 0.0, inner: bool = False) -> nn.Sequential:
    """A tiny network of torch's layers whose weights depend on the seed alone; `inner` is a third layer."""
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
    layers += [nn.BatchNorm2d(4)] if norm else []
    layers += [nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)] if inner else []
    layers += [nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(36, 3)]
    net = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source(seed)))
    if norm:
        nn.init.ones_(net[1].weight)  # type: ignore[arg-type]
    return net


@cache
def _quantized(dropout: float, inner: bool) -> list[nn.Module]:
    return [
        squint.quantize(network(k, dropout=dropout, inner=inner), bits, 3, bits)
        for k, bits in ((1, 2), (2, 3))
    ]


def ensemble(draws: int = 2, *, dropout: float = 0.0, inner: bool = False) -> Ensemble:
    """Two quantized members of different bits, uncalibrated."""
    return Ensemble(copy.deepcopy(_quantized(dropout, inner)), draws)
