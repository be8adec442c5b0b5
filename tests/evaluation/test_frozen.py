"""A frozen copy computes what its model computes, and leaves the model alone."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint._checks import HasMemberLogits
from squint.attacks.gradients import Units
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective
from squint.evaluation.frozen import frozen
from squint.quantize import attacker_view, integer_kernel, quantizers
from tests.evaluation.ladder_models import NoisyPair


def ensemble(name: str = "small_cnn", **settings: object) -> squint.Ensemble:
    """Return two members with batch normalization whose statistics are those of no other network."""
    generator = torch.Generator().manual_seed(0)
    members = []
    for bits in (2, 3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(bits)
            plain = squint.models.build({"name": name, "in_channels": 1, "width": 4})
        net = squint.quantize(plain, bits, 4, 1, **settings)  # type: ignore[arg-type]
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(0.3 * torch.randn(norm.num_features, generator=generator))
                norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
                norm.weight.data.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
                # Without a shift many exact sums are 0, where float sums fall on either side of ReLU's kink.
                norm.bias.data.copy_(0.3 * torch.randn(norm.num_features, generator=generator))
        squint.calibrate(net, torch.rand(32, 1, 8, 8, generator=generator))
        members.append(net)
    return squint.Ensemble(members, draws=2)


def images() -> tuple[Tensor, Tensor]:
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, torch.arange(12) % 10


CASES = [{}, {"learn_width": True}, {"weight_width": 1.0}, {"activation_width": 0.0, "learn_range": False}]


@pytest.mark.parametrize("settings", CASES)
@pytest.mark.parametrize("codes", [False, True])
def test_outputs_and_gradients_are_the_models(
    settings: dict[str, object], codes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not codes:
        monkeypatch.setattr(integer_kernel, "available", lambda: False)
    model, (x, y) = ensemble(**settings), images()  # type: ignore[arg-type]
    quick = frozen(model, precise=True)
    assert quick is not model
    with evaluation_mode(model):
        own, other = (Units(each, y, 4).logits(x, 7) for each in (model, quick))
        # Sums on codes are exact; the model's round, and now and then push a value over a threshold.
        assert torch.equal(own, other) or codes
        torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-3)
        views = (
            (model, quick),
            (attacker_view(model, "identity"), attacker_view(cast(nn.Module, quick), "identity")),
        )
        for own_view, other_view in views:
            value, slope = Units(own_view, y, 4).gradient(x, objective("margin", y), 7)
            again, same = Units(other_view, y, 4).gradient(x, objective("margin", y), 7)
            torch.testing.assert_close(again, value, rtol=1e-3, atol=1e-3)
            # Float32 sums over at most a few hundred terms in another order.
            torch.testing.assert_close(same, slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))
            assert float(slope.abs().max()) > 0


@pytest.mark.parametrize("name", ["resnet8", "small_cnn"])
def test_quick_networks_are_the_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = ensemble(name, activation_width=0.0).eval(), images()
    slopes = {}
    for kind in ("floats", "codes", "bfloat16"):
        if kind == "floats":
            monkeypatch.setattr(integer_kernel, "available", lambda: False)
        quick = frozen(model, precise=kind != "bfloat16")
        monkeypatch.undo()
        slopes[kind] = Units(quick, y, 4).gradient(x, objective("ce", y), 7)[1].flatten(1)
    with evaluation_mode(model):
        expected = Units(model, y, 4).gradient(x, objective("ce", y), 7)[1].flatten(1)
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(slopes["floats"], expected, rtol=1e-4, atol=1e-5 * largest)
    # A value that float sums carry over a threshold changes its image's gradient, but never much.
    codes, rounded = (torch.cosine_similarity(slopes[kind], expected) for kind in ("codes", "bfloat16"))
    assert float(codes.median()) > 0.999
    # A network that was never trained has exact zeros before its rectifications: sums fall to either side.
    assert float(rounded.median()) > 0.97


def test_the_model_stays_as_it_is_and_the_copy_asks_for_no_gradient() -> None:
    model = ensemble().train()
    before = copy.deepcopy(model.state_dict())
    quick = frozen(model)
    assert isinstance(quick, squint.Ensemble)
    assert model.training
    assert not any(part.training for part in quick.modules())
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    weights = [q for q in quantizers(quick) if q.name.endswith("weight_quantizer")]
    assert not weights
    assert isinstance(frozen(quick), HasMemberLogits)


@pytest.mark.parametrize("twice", ["relu", "convolution", "norm"])
def test_layers_that_run_twice_stay_where_they_run(twice: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shared = {"relu": nn.ReLU(), "convolution": nn.Conv2d(4, 4, 3), "norm": nn.BatchNorm2d(4)}[twice]
        layers: dict[str, list[nn.Module]] = {
            "relu": [nn.Conv2d(4, 4, 3), shared, nn.Conv2d(4, 4, 3), shared, nn.BatchNorm2d(4)],
            "convolution": [shared, shared, nn.BatchNorm2d(4)],
            "norm": [nn.Conv2d(4, 4, 3), shared, nn.ReLU(), nn.Conv2d(4, 4, 3), shared],
        }
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
        net = nn.Sequential(nn.Conv2d(1, 4, 3), *layers[twice], *head)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            norm.running_mean.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    x = torch.rand(16, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    quantized = squint.quantize(net, 4, 4, 2, width=0.0)
    squint.calibrate(quantized, x)
    with torch.no_grad():
        expected = quantized.eval()(x)
        found = cast(nn.Module, frozen(quantized))(x)
    # A value within rounding of a threshold may fall on its other side.
    assert float((found - expected).abs().max()) < 0.02
    assert float(expected.std()) > 0.02


def test_a_network_that_may_keep_state_is_not_copied() -> None:
    pair = NoisyPair()
    assert frozen(pair) is pair
    called = lambda x: x.flatten(1)  # noqa: E731
    assert frozen(called) is called
    hooked = ensemble()
    hooked.register_forward_hook(lambda *_: None)
    assert frozen(hooked) is hooked
    patched = ensemble()
    norm = next(module for module in patched.modules() if isinstance(module, nn.BatchNorm2d))
    own = norm.forward
    norm.forward = lambda x: own(x).clamp(0, 0.1)  # type: ignore[method-assign, assignment]
    assert frozen(patched) is patched
