"""Every rival takes every network of the project: one step's loss and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import squint
from squint._random import noise
from squint.baselines import RIVALS, make_rival
from squint.models import MODELS
from tests.baselines.tiny import MEMBERS, setup_of, source

OPTIONS: dict[str, dict[str, Any]] = {"dverge": {"warmup": 0.0, "steps": 1}, "trs": {"steps": 1}}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RIVALS)
def test_one_step(model: str, name: str) -> None:
    rival, setup = make_rival(name, OPTIONS.get(name)), setup_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        members = [
            rival.member(MODELS[model](5, 3, 2), place)
            for place in range(rival.member_count(MEMBERS.get(name, 1)))
        ]
    ens = rival.ensemble(members, 1)
    x = torch.rand(4, 3, 8, 8, generator=source())
    if name == "lsq":
        squint.calibrate(ens, x)
    with noise(source(1)):
        terms = rival.objective(setup)(ens.train(), x, torch.tensor([0, 1, 2, 4]), setup.total_steps - 1)
    torch.autograd.backward(list(terms.values()))
    gradients = [p.grad for p in ens.parameters() if p.ndim > 1]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert all(g is not None and bool(g.any()) for g in gradients[-1:])
