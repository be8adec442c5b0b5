"""DVERGE: the distillation on features that are the image itself, and who learns from whom."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from squint._checks import InputError
from squint._random import noise
from squint.baselines import make_rival
from squint.baselines.dverge import distil, feature_layers, features_of
from squint.ensemble import Ensemble
from tests.baselines.models import value
from tests.baselines.tiny import network, setup_of, source, toy_data


def mirror() -> nn.Sequential:
    """A network whose first convolution gives the image itself."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    head = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 4, generator=source(3)))
    return nn.Sequential(conv, nn.Flatten(), head)


def pair(n: int = 3) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 1, 2, 2, generator=source(1)), torch.rand(n, 1, 2, 2, generator=source(2))


def test_one_step_moves_towards_the_target() -> None:
    net, (x, target) = mirror(), pair()
    with noise(source()):
        found = distil(net, net[0], x, target, eps=0.1, steps=1, step_size=0.02)
    assert torch.allclose(found, (x + 0.02 * (target - x).sign()).clamp(0, 1))


def test_many_steps_reach_the_nearest_point_of_the_ball() -> None:
    net, (x, target) = mirror(), pair()
    # Far enough apart that no step, with momentum, can overshoot.
    target = (x + 0.5).where(x < 0.5, x - 0.5)
    with noise(source()):
        found = distil(net, net[0], x, target, eps=0.1, steps=10, step_size=0.02)
    assert torch.allclose(found, torch.minimum(torch.maximum(target, x - 0.1), x + 0.1))


def test_distillation_leaves_the_member_as_it_was() -> None:
    net = network().train()
    before = {key: item.clone() for key, item in net.state_dict().items()}
    x = toy_data(4)[0]
    with noise(source()):
        distil(net, feature_layers(net)[1], x, x.flip(0), eps=0.1, steps=2, step_size=0.05)
    assert all(torch.equal(item, before[key]) for key, item in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_features_are_the_normalizations_outputs() -> None:
    net = network().eval()
    layers = feature_layers(net)
    assert len(layers) == 3
    assert all(isinstance(layer, _BatchNorm) for layer in layers)
    x = toy_data(2)[0]
    with noise(source()):
        features = features_of(net, layers[0], x)
    conv1 = net.get_submodule("conv1")
    assert torch.equal(features, conv1(net.get_submodule("normalize")(x)).flatten(1))
    assert feature_layers(mirror())[0].__class__ is nn.Conv2d


def test_each_member_learns_the_images_of_the_others() -> None:
    """Member 0 stays put on flat features, so only what is distilled from member 1 differs from the image."""
    still, moving = mirror(), mirror()
    nn.init.zeros_(still[0].weight)  # type: ignore[arg-type]
    ens = Ensemble([still, moving], 1)
    x, _ = pair(4)
    y = torch.tensor([0, 1, 2, 0])
    rival = make_rival("dverge", {"warmup": 0.0, "eps": "0.1", "steps": 3})
    with noise(source()):
        term = rival.objective(setup_of("dverge"))(ens, x, y, 0)["distilled_ce"]
    # The flat member answers 1/3 for all it sees; the other one sees what the flat one left as it was.
    expected = (torch.log(torch.tensor(3.0)) + F.cross_entropy(moving(x), y)) / 2
    assert value(term) == pytest.approx(value(expected), rel=1e-5)


def test_the_first_half_is_plain_training() -> None:
    ens = Ensemble([network(1), network(2)], 1)
    objective = make_rival("dverge", {"steps": 1}).objective(setup_of("dverge", total_steps=4))
    with noise(source()):
        names = [list(objective(ens, *toy_data(6), step)) for step in range(4)]
    assert names == [["member_ce"], ["member_ce"], ["distilled_ce"], ["distilled_ce"]]


def test_passes_are_the_mean_over_training() -> None:
    # Half of training 3 passes; half 3 members times 11 distilling passes and 2 losses.
    assert make_rival("dverge").passes_per_step(3, 1) == (3 + 3 * 13) / 2


def test_refusals() -> None:
    with pytest.raises(InputError, match="members has 1 entries; rival dverge allowed: 2 or more"):
        make_rival("dverge").check(setup_of("dverge", members=1))
    with pytest.raises(InputError, match="rival dverge: eps is '0'; allowed: above 0"):
        make_rival("dverge", {"eps": "0"})
