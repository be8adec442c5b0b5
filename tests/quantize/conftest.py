"""Networks are initialised from torch's global stream: fixed for each test, and put back after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_initialisation() -> Iterator[None]:
    """Seed torch's global stream for one test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
