"""`quantize` on whole networks: what it converts, keeps, refuses and names."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from squint._checks import InputError, InputTypeError
from squint._random import noise
from squint.quantize import StochasticQuantizer, calibrate, needs_calibration, quantize, quantizers
from squint.quantize.layers import QuantizedConv2d, QuantizedLinear
from tests.quantize.nets import Residual, VisionTransformer, depthwise

NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "depthwise": depthwise,
    "transformer": VisionTransformer,
    "transformer, sequence first": lambda: VisionTransformer(batch_first=False),
}


def images(batch: int = 6) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return NETS[request.param]()


@pytest.mark.parametrize("training", [True, False])
def test_without_bits_nothing_changes(net: nn.Module, training: bool) -> None:
    net.train(training)
    state = copy.deepcopy(net.state_dict())
    full = quantize(net, None, None, None, first_last_bits=None)
    assert full.training == training
    torch.testing.assert_close(full(images()), net(images()), atol=1e-5, rtol=1e-5)
    assert not list(quantizers(full))
    if not training:
        for name, value in net.state_dict().items():
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("training", [True, False])
def test_eight_bits_are_close_and_fewer_are_further(net: nn.Module, training: bool) -> None:
    net.train(training)
    reference = copy.deepcopy(net)(images()).detach()
    errors = []
    for bits in (8, 4, 2):
        quantized = quantize(net, bits, bits, 8, width=0.0, first_last_bits=bits)
        calibrate(quantized, images())
        found = quantized(images()).detach()
        errors.append(float((found - reference).norm() / reference.norm()))
    assert errors[0] < 0.05
    assert errors == sorted(errors)


def test_every_layer_is_quantized_and_runs_through_its_quantizers(net: nn.Module) -> None:
    quantized = quantize(net.eval())
    calibrate(quantized, images())
    layers = [m for m in quantized.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]
    # Patches, per encoder layer four projections and two linear layers, and the head; six; four.
    assert len(layers) == {VisionTransformer: 14, Residual: 6, nn.Sequential: 4}[type(net)]
    calls: set[str] = set()
    for q in quantizers(quantized):
        q.register_forward_hook(lambda q, *_: calls.add(q.name))
    quantized(images())
    assert calls == {q.name for q in quantizers(quantized)}
    assert len(calls) == 2 * len(layers) + 1
    plain = [m for m in quantized.modules() if type(m) in (nn.Conv2d, nn.Linear, nn.MultiheadAttention)]
    assert not plain


def test_training_updates_every_parameter(net: nn.Module) -> None:
    quantized = quantize(net.train(), learn_width=True)
    calibrate(quantized, images())
    torch.autograd.backward(quantized(images()).square().sum())
    for name, parameter in quantized.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_the_argument_is_untouched(net: nn.Module) -> None:
    net.train()
    state = copy.deepcopy(net.state_dict())
    kinds = [type(m) for m in net.modules()]
    quantized = quantize(net)
    calibrate(quantized, images())
    with torch.no_grad():
        for parameter in quantized.parameters():
            parameter.mul_(2)
    assert [type(m) for m in net.modules()] == kinds
    assert net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_restored_state_gives_the_same_outputs(net: nn.Module) -> None:
    quantized = quantize(net.eval(), learn_width=True)
    calibrate(quantized, images())
    fresh = quantize(net, learn_width=True)
    assert needs_calibration(fresh)
    fresh.load_state_dict(quantized.state_dict())
    twin = copy.deepcopy(quantized)
    outputs = []
    for each in (quantized, fresh, twin):
        with noise(torch.Generator().manual_seed(4)):
            outputs.append(each(images()))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_shared_modules_stay_shared_and_tied_weights_tied() -> None:
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    quantized = quantize(nn.Sequential(shared, nn.ReLU(), shared, tied))
    inner = cast(nn.Sequential, quantized.network)
    assert inner[0] is inner[2]
    assert inner[0].weight is inner[3].weight
    assert inner[0].weight is not shared.weight
    calibrate(quantized, torch.rand(5, 4))
    assert quantized(torch.rand(5, 4)).shape == (5, 4)


def test_hooks_and_plain_attributes_come_along() -> None:
    layer = nn.Linear(3, 2)
    layer.note = "kept"  # type: ignore[assignment]
    layer.register_forward_hook(lambda _module, _args, out: out + 100)
    quantized = quantize(layer, input_bits=None, first_last_bits=None)
    assert cast(Any, quantized.network).note == "kept"
    assert float(quantized(torch.rand(1, 3)).detach().min()) > 50


def test_bits_of_first_last_and_middle_layers() -> None:
    quantized = quantize(Residual(), 3, 5, 2, first_last_bits=7)
    bits = {q.name: q.bits for q in quantizers(quantized)}
    assert bits.pop("input_quantizer") == 2
    ends = {name: value for name, value in bits.items() if name.startswith(("stem.", "head."))}
    assert set(ends.values()) == {7}
    assert len(ends) == 4
    for name in bits.keys() - ends.keys():
        assert bits[name] == (3 if name.endswith("weight_quantizer") else 5)


def test_settings_reach_the_quantizers_they_are_for() -> None:
    quantized = quantize(
        Residual(),
        noise="gaussian",
        width=1.5,
        input_width=2.0,
        weight_width=0.5,
        granularity="channel",
        learn_range=False,
        input_range=(-1.0, 3.0),
    )
    source = quantized.input_quantizer
    assert source is not None
    assert (float(source.width), float(source.low), float(source.high)) == (2.0, -1.0, 3.0)
    for q in quantizers(quantized):
        assert q.noise == "gaussian"
        assert not list(q.parameters())
        if q.name.endswith("activation_quantizer"):
            assert (float(q.width), q.granularity) == (1.5, "channel")
        if q.name.endswith("weight_quantizer"):
            assert float(q.width) == 0.5
    assert json.loads(json.dumps(quantized.settings)) == quantized.settings
    again = quantize(Residual(), **quantized.settings)
    assert [repr(q) for q in quantizers(again)] == [repr(q) for q in quantizers(quantized)]


def test_overrides_apply_by_pattern_and_in_order() -> None:
    quantized = quantize(
        Residual(),
        overrides={"blocks.*": {"weight_bits": 6, "noise": "logistic"}, "blocks.1.0": {"weight_bits": None}},
    )
    found = {q.name: q for q in quantizers(quantized)}
    assert found["blocks.0.0.weight_quantizer"].bits == 6
    assert found["blocks.1.0.activation_quantizer"].noise == "logistic"
    assert "blocks.1.0.weight_quantizer" not in found
    assert found["stem.weight_quantizer"].bits == 8


def test_what_is_left_in_full_precision_is_named_in_one_warning() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.normed(self.rnn(x)[0]))
            return out

    with pytest.warns(UserWarning, match="full precision") as caught:
        quantized = quantize(Recurrent())
    assert len(caught) == 1
    assert "rnn (GRU)" in str(caught[0].message)
    assert "normed (ParametrizedLinear)" in str(caught[0].message)
    assert caught[0].filename == __file__
    calibrate(quantized, torch.rand(2, 3, 4))
    assert quantized(torch.rand(2, 3, 4)).shape == (2, 3, 2)


def test_supported_networks_convert_without_a_warning(net: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(net)


def test_a_single_layer_is_both_first_and_last() -> None:
    quantized = quantize(nn.Linear(3, 2))
    assert isinstance(quantized.network, QuantizedLinear)
    assert {q.bits for q in quantizers(quantized) if q is not quantized.input_quantizer} == {8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_bits": 0}, "weight_bits is 0"),
        ({"activation_bits": 9}, "activation_bits is 9"),
        ({"input_bits": 1.5}, "input_bits is 1.5"),
        ({"first_last_bits": -1}, "first_last_bits is -1"),
        ({"noise": "normal"}, "noise is 'normal'"),
        ({"width": -1}, "width is -1"),
        ({"width": 1e-9}, "width is 1e-09"),
        ({"activation_width": 1e-9}, "activation_width is 1e-09"),
        ({"weight_width": float("nan")}, "weight_width is nan"),
        ({"granularity": "image"}, "granularity is 'image'"),
        ({"overrides": {"blocks.9.*": {}}}, "matches none of the 6 layers"),
        ({"overrides": {"stem": {"weight_bit": 3}}}, "did you mean 'weight_bits'"),
        ({"overrides": {"stem": {"weight_bits": 12}}}, "weight_bits is 12"),
        ({"features": "heads"}, "did you mean 'head'"),
        ({"input_range": (1.0, 0.0)}, "high is 0.0"),
        ({"input_range": (0.0, 0.5, 1.0)}, "input_range is (0.0, 0.5, 1.0); allowed: a pair"),
        ({"input_range": 1.0}, "input_range is 1.0; allowed: a pair"),
        ({"overrides": {"*": 5}}, "overrides['*'] is 5; allowed: names of settings"),
        ({"learn_width": True, "width": 0.1}, "0.25"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        quantize(Residual(), **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_that_cannot_be_quantized_are_refused() -> None:
    with pytest.raises(InputError, match="ReLU has no convolution or linear layer"):
        quantize(nn.ReLU())
    with pytest.raises(InputTypeError, match="got function"):
        quantize(cast(nn.Module, lambda x: x))


def test_a_quantized_network_converts_no_further() -> None:
    once = quantize(nn.Linear(3, 2))
    with pytest.raises(InputError, match="no convolution or linear layer"):
        quantize(once)


def test_quantizers_inside_custom_networks_are_found() -> None:
    custom = nn.Sequential(StochasticQuantizer(2), nn.Linear(3, 2))
    assert len(list(quantizers(quantize(custom)))) == 4
