"""PACT's clip against numbers worked out by hand: values, and the gradient of equation 3."""

from __future__ import annotations

import pytest
import torch

from squint.baselines import make_rival
from squint.baselines.pact import PactActivation, clip_penalty
from tests.baselines.models import value
from tests.baselines.tiny import setup_of, system, toy_data


def test_values_and_gradients() -> None:
    # alpha 2, levels 0, 2/3, 4/3, 2: the clip gives 0, 0.5, 1.4, 2, 2.
    clip = PactActivation(2, 2.0)
    x = torch.tensor([-1.0, 0.5, 1.4, 2.0, 3.0], requires_grad=True)
    out = clip(x)
    assert out.tolist() == pytest.approx([0, 2 / 3, 4 / 3, 2, 2])
    (out * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).sum().backward()
    assert clip.alpha.grad is not None
    assert float(clip.alpha.grad) == 24.0
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 4, 8, 0]  # the end of the range belongs to it


def test_the_penalty_is_the_sum_of_squares() -> None:
    ens = system(make_rival("pact", {"alpha_start": 3.0}))
    assert value(clip_penalty(ens)) == 18.0  # two inner layers
    rival, setup = make_rival("pact", {"alpha_start": 3.0, "alpha_decay": 0.5}), setup_of("pact")
    terms = rival.objective(setup)(ens, *toy_data(), 0)
    assert terms.keys() == {"member_ce", "clip_penalty"}
    assert value(terms["clip_penalty"]) == 9.0


def test_the_level_learns() -> None:
    ens = system(make_rival("pact"))
    terms = make_rival("pact").objective(setup_of("pact"))(ens, *toy_data(), 0)
    torch.autograd.backward(list(terms.values()))
    clips = [module for module in ens.modules() if isinstance(module, PactActivation)]
    assert len(clips) == 2
    assert all(clip.alpha.grad is not None and float(clip.alpha.grad) != 0 for clip in clips)
