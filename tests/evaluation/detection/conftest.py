from __future__ import annotations

import pytest
import torch
from torch import Tensor

from squint import Ensemble, ObjectiveConfig, TrainConfig, fit, quantize
from squint import data as D
from squint.models import small_cnn
from tests.evaluation.detection.nets import untrained


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def random_ensemble() -> tuple[Ensemble, Tensor, Tensor]:
    return untrained()


@pytest.fixture(scope="session")
def trained() -> tuple[Ensemble, D.Splits]:
    """A stochastic ensemble that reads digits well enough to be worth attacking."""
    splits = D.load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        members = [
            quantize(small_cnn(10, 1, 6), 4, 4, bits, first_last_bits=8, activation_width=0.0)
            for bits in (1, 2)
        ]
    ens = Ensemble(members, 2)
    config = TrainConfig(
        epochs=5,
        batch_size=64,
        learning_rate=0.01,
        draws=1,
        objective=ObjectiveConfig(ensemble=1.0),
        accelerator="cpu",
    )
    fit(ens, splits.train, config)
    return ens.eval(), splits
