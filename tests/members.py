"""Members that ensembles are tried with."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

import squint
from squint.quantize import QuantizedNetwork

BATCH = 5


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = BATCH) -> Tensor:
    return torch.rand(batch, 1, 6, 6, generator=source(7))


def plain(*, classes: int = 4, norm: bool = False, seed: int = 1) -> nn.Sequential:
    """A network of torch's own layers, with fixed weights."""
    layers: list[nn.Module] = [nn.Conv2d(1, 3, 3, padding=1)]
    layers += [nn.BatchNorm2d(3)] if norm else []
    net = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(108, 7), nn.ReLU(), nn.Linear(7, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source(seed)))
    return net.eval()


@cache
def calibrated(**settings: float | str) -> QuantizedNetwork:
    net = squint.quantize(plain(norm=True), 3, 3, 2, **settings)  # type: ignore[arg-type]
    squint.calibrate(net, images(16))
    return net


def noisy(**settings: float | str) -> QuantizedNetwork:
    return copy.deepcopy(calibrated(**settings))


class ForeignNoise(nn.Module):
    """Somebody's own noise: one number per forward pass, from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        logits: Tensor = self.net(x)
        return logits + torch.rand(())


class Reversed(nn.Module):
    """Defines its head before its body: the order of definition is not that of running."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.body = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.flatten(1)).relu())
        return logits


def counted(net: nn.Module) -> list[int]:
    """Return a list that grows by the batch size of every forward pass of `net`."""
    sizes: list[int] = []
    net.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    return sizes
