"""Small networks and data on which rivals are tried."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import squint
from squint.baselines import Rival, Setup, make_rival
from squint.ensemble import Ensemble
from squint.training import TrainConfig

STEPS = 2
BATCH = 12
MEMBERS = {"adp": 3, "gal": 2, "dverge": 2, "trs": 2}
DRAWS = {"consistency": 2}


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy_data(n: int = STEPS * BATCH) -> tuple[Tensor, Tensor]:
    """Images whose class is the brightest of three columns."""
    generator = source(5)
    y = torch.randint(3, (n,), generator=generator)
    x = 0.6 * torch.rand(n, 1, 6, 6, generator=generator)
    for column in range(3):
        x[y == column, :, :, 2 * column : 2 * column + 2] += 0.4
    return x, y


def network(seed: int = 0) -> nn.Module:
    """A tiny network of the project with weights that depend on the seed alone."""
    net = squint.models.small_cnn(3, 1, 2)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source(seed)))
            else:
                parameter.fill_(float(name.endswith("weight")))
    return net


def setup_of(name: str, **changes: Any) -> Setup:
    """Return a configuration that a rival accepts."""
    values: dict[str, Any] = {
        "members": make_rival(name).member_count(MEMBERS.get(name, 1)),
        "training_draws": DRAWS.get(name, 1),
        "eps": 0.1,
        "total_steps": STEPS,
    }
    return Setup(**values | changes)


def system(rival: Rival, draws: int = 2) -> Ensemble:
    """Return a rival's ensemble with fixed fresh weights."""
    count = rival.member_count(MEMBERS.get(rival.name, 1))
    return rival.ensemble([rival.member(network(seed), seed) for seed in range(count)], draws)


def train_config(**changes: Any) -> TrainConfig:
    """Two steps on the CPU."""
    values: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "accelerator": "cpu"}
    return TrainConfig(**values | changes)
