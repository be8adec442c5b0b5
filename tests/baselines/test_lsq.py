"""LSQ: the step's gradient of equation 3 with its scale, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

import squint
from squint.baselines import make_rival
from squint.quantize import StochasticQuantizer, quantizers
from tests.baselines.tiny import network, toy_data


def test_the_step_learns_from_the_residual() -> None:
    member = make_rival("lsq", {"activation_bits": 2}).member(network(), 0)
    quantizer = member.get_submodule("network.conv2.0.activation_quantizer")
    assert isinstance(quantizer, StochasticQuantizer)
    quantizer.set_range(0.0, 3.0)
    x = torch.tensor([[0.4, 1.7, 5.0]], requires_grad=True)
    y = quantizer(x)
    assert y.tolist() == [[0.0, 2.0, 3.0]]
    y.sum().backward()
    assert quantizer.step.grad is not None
    # Residuals -0.4 and 0.3, and Q_P = 3 beyond the range; three values share the step.
    assert float(quantizer.step.grad) == pytest.approx((-0.4 + 0.3 + 3) / math.sqrt(3 * 3))
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1, 0]]


def test_every_quantizer_is_deterministic_and_straight_through() -> None:
    member = make_rival("lsq", {"weight_bits": 3, "activation_bits": 2}).member(network(), 0)
    squint.calibrate(member, toy_data()[0])
    found = {quantizer.name: quantizer for quantizer in quantizers(member)}
    assert "input_quantizer" not in found
    assert not any(quantizer.stochastic for quantizer in found.values())
    assert {quantizer.gradient for quantizer in found.values()} == {"straight_through"}
    bits = {name: quantizer.bits for name, quantizer in found.items()}
    assert bits["conv1.0.weight_quantizer"] == bits["classifier.activation_quantizer"] == 8
    assert (bits["conv2.0.weight_quantizer"], bits["conv2.0.activation_quantizer"]) == (3, 2)
