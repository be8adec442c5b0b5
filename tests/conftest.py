"""What every test starts from, whatever started the tests and whatever ran before."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Small tensors gain nothing from more threads, and results do not depend on the cores.
torch.set_num_threads(1)
# A runner in the background has Ctrl-C ignored for all it starts; tests that send one need it back.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What decides whether a change may land draws the same examples every time; `make fuzz` draws fresh ones.
# How long one takes is the machine's affair.
hypothesis.settings.register_profile("gate", max_examples=60, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("gate")


@pytest.fixture(autouse=True)
def fixed_initialisation() -> Iterator[None]:
    """Seed torch's global stream, from which networks are initialised, for one test; put it back after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
