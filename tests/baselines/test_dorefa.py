"""DoReFa's two functions against numbers worked out by hand, and where its layers stand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from squint.baselines import make_rival
from squint.baselines.conversion import ConvertedNetwork, Wrapped, fixed_bins
from squint.baselines.dorefa import DorefaWeight
from squint.quantize import attacker_view, quantizers
from tests.baselines.tiny import network

THIRD = 1 / 3


def test_weights_of_two_bits() -> None:
    # tanh: -0.762, 0.0997, 0.462, 0.964; over twice the largest, plus a half: 0.105, 0.552, 0.740, 1;
    # times 3: 0.315, 1.66, 2.22, 3; rounded 0, 2, 2, 3; 2 k/3 - 1.
    w = torch.tensor([-1.0, 0.1, 0.5, 2.0], requires_grad=True)
    out = DorefaWeight(2)(w)
    assert out.tolist() == pytest.approx([-1, THIRD, THIRD, 1])
    out.sum().backward()
    assert w.grad is not None
    expected = [(1 - math.tanh(v) ** 2) / math.tanh(2) for v in (-1.0, 0.1, 0.5, 2.0)]
    assert w.grad.tolist() == pytest.approx(expected)


def test_weights_of_one_bit_are_signs_at_the_mean_magnitude() -> None:
    w = torch.tensor([-1.0, 0.0, 0.5, 2.5], requires_grad=True)
    out = DorefaWeight(1)(w)
    assert out.tolist() == pytest.approx([-1.0, 1.0, 1.0, 1.0])
    out.sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == [1.0] * 4


def test_activations_clip_and_round() -> None:
    a = torch.tensor([-0.3, 0.2, 0.6, 1.4], requires_grad=True)
    out = fixed_bins(2)(a)
    assert out.tolist() == pytest.approx([0, THIRD, 2 * THIRD, 1])
    out.sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [0, 1, 1, 0]


def test_first_and_last_layer_stay_in_full_precision() -> None:
    member = make_rival("dorefa", {"weight_bits": 3, "activation_bits": 2}).member(network(), 0)
    wrapped = {name for name, module in member.named_modules() if isinstance(module, Wrapped)}
    assert wrapped == {"network.conv2.0", "network.conv3.0"}
    plain = {name for name, module in member.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert {"network.conv1.0", "network.classifier"} < plain


def test_a_layer_uses_both_functions() -> None:
    member = make_rival("dorefa", {"weight_bits": 2, "activation_bits": 2}).member(network(), 0)
    wrapped = member.get_submodule("network.conv2.0")
    assert isinstance(wrapped, Wrapped)
    conv = wrapped.layer
    assert isinstance(conv, nn.Conv2d)
    x = 2 * torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = nn.functional.conv2d(
        fixed_bins(2)(x), DorefaWeight(2)(conv.weight), None, conv.stride, conv.padding
    )
    assert torch.equal(wrapped(x), expected)


def test_an_attacker_may_look_past_the_clip() -> None:
    """Beyond [0, 1] the clip has no gradient; the ladder's swapped gradients reach it."""
    member = make_rival("dorefa").member(network(), 0)
    names = [quantizer.name for quantizer in quantizers(member)]
    assert names == ["conv2.0.on_input", "conv3.0.on_input"]
    assert not any(quantizer.stochastic for quantizer in quantizers(member))
    wrapped = member.get_submodule("network.conv2.0")
    x = torch.full((1, 2, 4, 4), 3.0, requires_grad=True)
    (blind,) = torch.autograd.grad(wrapped(x).sum(), x)
    (seeing,) = torch.autograd.grad(attacker_view(wrapped, "identity", layers=["*on_input"])(x).sum(), x)
    assert not bool(blind.any())
    assert bool(seeing.any())


@pytest.mark.parametrize("name", ["dorefa", "pact", "rse", "pni", "random-precision"])
def test_a_layer_that_runs_twice_is_changed_in_both_places(name: str) -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(108, 4))
    member = make_rival(name, {}).member(net, 0)
    places = member.network if isinstance(member, ConvertedNetwork) else member
    assert isinstance(places, nn.Sequential)
    assert places[1] is places[3]
    assert places[1] is not shared
