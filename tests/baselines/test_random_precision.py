"""Random precision: the linear quantizer by hand, what draws a precision and when, and its own statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from squint._checks import InputError
from squint._random import noise
from squint.baselines import make_rival
from squint.baselines.random_precision import held_precision
from squint.baselines.switchable import (
    RandomPrecisionNetwork,
    SwitchableLayer,
    SwitchableNorm,
    linear_quantize,
)
from squint.ensemble import Ensemble
from tests.baselines.tiny import network, setup_of, source, toy_data

NAME = "random-precision"


def trained(**options: object) -> tuple[Ensemble, RandomPrecisionNetwork]:
    """An ensemble of one network that saw every precision of its set, in evaluation mode."""
    rival = make_rival(NAME, {"bits": [2, 3, 5], **options})
    net = rival.member(network(), 0)
    assert isinstance(net, RandomPrecisionNetwork)
    net.train()
    for place in range(3):
        net.held = place
        net(toy_data()[0])
    net.held = None
    return Ensemble([net], 4).eval(), net


def test_linear_quantization() -> None:
    # 2 bits from -1 to 2: step 1.
    values = torch.tensor([-3.0, -0.6, 0.4, 1.7, 5.0], requires_grad=True)
    out = linear_quantize(values, torch.tensor(-1.0), torch.tensor(2.0), 2)
    assert out.tolist() == [-1, -1, 0, 2, 2]
    torch.autograd.backward(out.sum())
    assert values.grad is not None
    assert values.grad.tolist() == [1] * 5


def test_a_layer_at_a_precision() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 3.0], [-1.0, 2.0]]))
    switchable = SwitchableLayer(layer, (1, 2)).train()
    switchable.chosen = 0
    # Each row of the weight keeps its ends; the input's ends are 0.1 and 0.9.
    x = torch.tensor([[0.1, 0.3], [0.6, 0.9]])
    rounded = torch.tensor([[0.1, 0.1], [0.9, 0.9]])
    assert torch.allclose(switchable(x), rounded @ layer.weight.T)
    assert [float(switchable.low), float(switchable.high)] == pytest.approx([0.1, 0.9])
    switchable(torch.tensor([[0.0, 1.9]]))
    assert float(switchable.high) == pytest.approx(0.9 + 0.1 * (1.9 - 0.9))
    switchable.eval()
    switchable(torch.tensor([[-7.0, 7.0]]))
    assert float(switchable.high) == pytest.approx(1.0)


def outputs(net: RandomPrecisionNetwork, x: Tensor) -> list[Tensor]:
    """The network's logits at each of its precisions."""
    found = []
    for place in range(len(net.bits)):
        net.held = place
        found.append(net(x))
    net.held = None
    return found


def test_every_draw_takes_one_of_the_precisions_equally_often() -> None:
    ens, net = trained()
    x = toy_data(4)[0]
    with torch.no_grad():
        known = outputs(net, x)
        draws = ens.member_logits(x, 300, generator=source())[:, 0]
    counts = [sum(torch.allclose(draw, one, atol=1e-6) for draw in draws) for one in known]
    assert sum(counts) == 300
    # Binomial with n 300, p 1/3: four standard errors.
    assert all(abs(count - 100) < 4 * math.sqrt(300 * 2 / 9) for count in counts), counts


def test_folding_draws_changes_none_of_them() -> None:
    _, net = trained()
    x = toy_data(3)[0]
    with torch.no_grad():
        alone = Ensemble([net], 1, chunk=1).eval().member_logits(x, 12, generator=source())
        folded = Ensemble([net], 1, chunk=512).eval().member_logits(x, 12, generator=source())
    assert torch.allclose(alone, folded, atol=1e-6)


def test_each_precision_has_statistics_of_its_own() -> None:
    rival = make_rival(NAME, {"bits": [2, 4]})
    net = rival.member(network(), 0).train()
    ens = Ensemble([net], 1)
    norms = [module for module in net.modules() if isinstance(module, SwitchableNorm)]
    assert len(norms) == 3
    with noise(source()):
        rival.objective(setup_of(NAME))(ens, *toy_data(), 0)
    counts = [[int(norm.num_batches_tracked) for norm in switch.norms] for switch in norms]  # type: ignore[arg-type]
    assert counts in ([[1, 0]] * 3, [[0, 1]] * 3)


def test_one_precision_is_held_for_attack_and_update() -> None:
    _, net = trained()
    with held_precision(net, source()):
        place = net.held
        assert place in (0, 1, 2)
        assert torch.equal(net(toy_data(2)[0]), net(toy_data(2)[0]))
    assert net.held is None


def test_inference_alone_trains_in_full_precision() -> None:
    ens, net = trained(training="fixed")
    assert not any(isinstance(module, SwitchableNorm) for module in net.modules())
    x = toy_data(4)[0]
    net.train()
    plain = network().train()
    assert torch.equal(net(x), plain(x))
    ens.eval()
    with torch.no_grad():
        draws = ens.member_logits(x, 30, generator=source())[:, 0]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 3


def test_adversarial_training_is_tier_c_and_needs_a_radius() -> None:
    rival = make_rival(NAME, {"adversarial": True})
    assert rival.tier == "C"
    with pytest.raises(InputError, match="eps is 0; rival random-precision allowed: above 0"):
        rival.check(setup_of(NAME, eps=0.0))
    ens = Ensemble([rival.member(network(), 0)], 1).train()
    with noise(source()):
        assert rival.objective(setup_of(NAME))(ens, *toy_data(), 0).keys() == {"adversarial_ce"}


def test_adversarial_training_in_full_precision_is_refused() -> None:
    with pytest.raises(InputError, match="training is 'fixed' and adversarial is true; rival"):
        make_rival(NAME, {"adversarial": True, "training": "fixed"}).check(setup_of(NAME))
    make_rival(NAME, {"training": "fixed"}).check(setup_of(NAME))


def test_a_first_attack_sees_the_batchs_ends() -> None:
    """Before training has set the running ends, which are 0, they would make every input the same."""
    layer = nn.Linear(2, 2, bias=False)
    switchable = SwitchableLayer(layer, (1, 16)).eval()
    switchable.chosen = 1
    x = torch.tensor([[0.1, 0.3], [0.6, 0.9]])
    # 2^16 levels of a range of at most 1: half a step is below 1e-5.
    assert torch.allclose(switchable(x), layer(x), atol=1e-4)
    assert not bool(switchable.seen)


@pytest.mark.parametrize("bits", [[4], [4, 4], [0, 4], [4, 17]])
def test_too_few_precisions_are_refused(bits: list[int]) -> None:
    with pytest.raises(
        InputError, match=r"rival random-precision: bits is .*allowed: two precisions or more"
    ):
        make_rival(NAME, {"bits": bits})
