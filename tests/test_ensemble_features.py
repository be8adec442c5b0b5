"""Features, gradients, and input that an ensemble refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import squint
from squint._checks import InputError, InputTypeError
from squint.ensemble import Ensemble
from squint.models import small_cnn
from tests.members import BATCH, ForeignNoise, Reversed, images, noisy, plain, source


def test_features_are_the_float_input_of_the_layer_that_runs_last() -> None:
    net, wild = noisy(), Reversed()
    ens = Ensemble([net, plain(seed=2), wild])
    seen: dict[nn.Module, Tensor] = {}
    last = [net.network[6], ens.members[1][5], wild.head]  # type: ignore[index]
    for layer in last:
        layer.register_forward_pre_hook(lambda module, inputs: seen.__setitem__(module, inputs[0]))
    with squint.noise(source()):
        features = ens.features(images())
    for layer, z in zip(last, features, strict=True):
        assert torch.equal(z, seen[layer])
        assert z.shape == (BATCH, layer.in_features)
    # Not the quantized input, which is whole multiples of its step.
    quantizer = net.network[6].activation_quantizer  # type: ignore[index]
    assert isinstance(quantizer, squint.StochasticQuantizer)
    multiples = features[0] / quantizer.step
    assert float((multiples - multiples.round()).detach().abs().max()) > 0.1


def test_features_come_from_the_first_draw_of_the_same_pass() -> None:
    foreign = ForeignNoise()
    ens = Ensemble([noisy(), foreign])
    logits, features = ens.logits_and_features(images(), 3, generator=source())
    assert torch.equal(logits, ens.member_logits(images(), 3, generator=source()))
    noise = (logits[0, 1] - foreign.net[5](features[1])).flatten()
    assert float((noise - noise[0]).detach().abs().max()) < 1e-5
    assert all(z.requires_grad for z in features)
    assert not any(module._forward_pre_hooks for module in ens.modules())


def test_a_named_layer_gives_the_features() -> None:
    net = squint.quantize(plain(), 3, 3, 2, features="3")
    squint.calibrate(net, images(64))
    assert Ensemble([net]).features(images())[0].shape == (BATCH, 108)


def test_features_need_a_layer_that_sees_images_row_by_row() -> None:
    for net in (
        nn.Flatten(),
        nn.Sequential(nn.Flatten(0), nn.Linear(36 * BATCH, 2), nn.Unflatten(0, (1, 2))),
    ):
        with pytest.raises(InputError, match=r"name the layer|model returned"):
            Ensemble([net]).features(images())


def test_gradients_reach_images_and_weights() -> None:
    ens = Ensemble([noisy(), plain(seed=2)], draws=2)
    x = images().requires_grad_()
    ens(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in ens.members[1].parameters())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Ensemble([]), InputError, "members is empty"),
        (lambda: Ensemble([plain(), "net"]), InputTypeError, r"members\[1\] is str"),  # type: ignore[list-item]
        (lambda: Ensemble(nn.Flatten()), InputTypeError, "needed: a list"),  # type: ignore[arg-type]
        (lambda: Ensemble([plain()], 0), InputError, "draws is 0"),
        (lambda: Ensemble([plain()], 1.5), InputError, "draws is 1.5"),  # type: ignore[arg-type]
        (lambda: Ensemble([plain()], chunk=0), InputError, "chunk is 0"),
        (lambda: Ensemble([plain()])(images() * 255), InputError, "allowed: \\[0, 1\\]"),
        (lambda: Ensemble([plain()])(images() * float("nan")), InputError, "NaN"),
        (lambda: Ensemble([plain()]).features(images() - 1), InputError, "allowed: \\[0, 1\\]"),
        (lambda: Ensemble([plain()]).member_logits(images().byte()), InputError, "dtype torch.uint8"),
        (lambda: Ensemble([plain()]).member_logits(images()[:0]), InputError, "non-empty"),
        (lambda: Ensemble([plain()]).member_logits([[0.5]]), InputTypeError, "torch.Tensor"),  # type: ignore[arg-type]
        (lambda: Ensemble([plain()]).member_logits(images(), 0), InputError, "draws is 0"),
        (lambda: Ensemble([plain(), plain(classes=3)])(images()), InputError, r"members\[1\] has 3 classes"),
        (lambda: Ensemble([nn.Identity()])(images()), InputError, "model returned shape"),
        (lambda: Ensemble([small_cnn(4, 3, 2)])(torch.rand(2, 2, 8, 8)), InputError, "have shape"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
