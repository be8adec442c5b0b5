"""PNI: equation 5 and its gradient with the noise replayed, equation 11, and where the noise stands."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint._checks import InputError
from squint._random import draw_noise, noise
from squint.baselines import make_rival
from squint.baselines.gaussian import gaussian
from squint.baselines.inner_attack import adversarial_examples
from squint.baselines.pni import NoisyLayer
from tests.baselines.models import value
from tests.baselines.tiny import setup_of, source, system, toy_data


def linear() -> nn.Linear:
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 4, generator=source(1)))
    return layer


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    with noise(source(seed)):
        return gaussian(shape, torch.zeros(()))


def test_the_weight_is_moved_by_alpha_times_sigma_times_noise() -> None:
    layer = linear()
    noisy, x = NoisyLayer(layer, "weight", 0.25), torch.rand(5, 4, generator=source(2))
    eta = drawn((1, 3, 4), 7)[0]
    sigma = layer.weight.detach().std()
    with noise(source(7)):
        out = noisy(x)
    assert torch.allclose(out, F.linear(x, layer.weight + 0.25 * sigma * eta, layer.bias))
    out.sum().backward()
    assert noisy.alpha_weight is not None
    assert noisy.alpha_weight.grad is not None
    # d out/d alpha = x (sigma eta)^T.
    assert float(noisy.alpha_weight.grad) == pytest.approx(float((x @ (sigma * eta).T).sum()), rel=1e-5)
    assert noisy.alpha_input is None


def test_folded_draws_do_not_share_a_weight() -> None:
    noisy, x = NoisyLayer(linear(), "weight", 0.5), torch.rand(2, 4, generator=source(2))
    with draw_noise([3, 4]):
        folded = noisy(torch.cat([x, x]))
    for place, seed in enumerate((3, 4)):
        with draw_noise([seed]):
            assert torch.allclose(noisy(x), folded.chunk(2)[place])
    assert not torch.allclose(*folded.chunk(2))


def test_draws_with_the_same_noise_run_together() -> None:
    layer = linear()
    calls: list[int] = []
    layer.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    noisy, x = NoisyLayer(layer, "weight", 0.5), torch.rand(3, 4, generator=source(2))
    with draw_noise([7, 7, 7]):
        together = noisy(x)
    with draw_noise([7]):
        assert torch.allclose(noisy(x), together)
    with draw_noise([7, 7, 8]):
        apart = noisy(x)
    assert torch.allclose(apart[:2], together[:2])
    assert not torch.allclose(apart[2], together[2])
    assert calls == [3, 3, 1, 1, 1]


def test_noise_on_the_input_scales_with_each_example() -> None:
    layer = linear()
    noisy = NoisyLayer(layer, "input", 0.5)
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 5.0, 7.0]])
    with noise(source(7)):
        out = noisy(x)
    sigma = torch.tensor([[0.0], [(20 / 3) ** 0.5]])
    assert torch.allclose(out, F.linear(x + 0.5 * sigma * drawn((2, 4), 7), layer.weight, layer.bias))


def test_every_layer_has_a_level_that_starts_at_the_papers() -> None:
    ens = system(make_rival("pni"))
    levels = {name: float(p.detach()) for name, p in ens.named_parameters() if "alpha" in name}
    assert set(levels.values()) == {0.25}
    assert len(levels) == 4


def test_half_the_loss_is_clean_and_half_adversarial() -> None:
    x, y = toy_data()
    terms = {}
    for share in (0.5, 0.25):
        rival = make_rival("pni", {"adversarial_share": share, "alpha_start": 0.0})
        ens = system(rival).eval()
        with noise(source()):
            terms[share] = rival.objective(setup_of("pni"))(ens, x, y, 0)
    assert value(terms[0.5]["clean_ce"]) == pytest.approx(value(terms[0.25]["clean_ce"]) * 0.5 / 0.75)
    assert value(terms[0.5]["adversarial_ce"]) == pytest.approx(value(terms[0.25]["adversarial_ce"]) * 2)
    plain = F.cross_entropy(system(make_rival("full-precision")).eval().member_logits(x, 1)[0, 0], y)
    assert value(terms[0.5]["clean_ce"]) == pytest.approx(0.5 * value(plain), rel=1e-5)


def test_the_attack_moves_away_from_the_networks_own_prediction() -> None:
    x, y = toy_data()
    rival = make_rival("pni", {"alpha_start": 0.0})
    ens = system(rival).eval()
    with noise(source()):
        term = rival.objective(setup_of("pni"))(ens, x, y, 0)["adversarial_ce"]
    with noise(source()), torch.no_grad():
        predicted = ens.member_logits(x, 1)[0, 0].argmax(-1)
        assert not torch.equal(predicted, y)
        points = adversarial_examples(ens, x, predicted, eps=0.1, steps=7, step_size=None)
        expected = 0.5 * F.cross_entropy(ens.member_logits(points, 1)[0, 0], y)
    assert value(term) == pytest.approx(value(expected), rel=1e-5)


def test_without_adversarial_training_it_is_tier_a() -> None:
    rival = make_rival("pni", {"adversarial": False})
    assert rival.tier == "A"
    rival.check(setup_of("pni", eps=0.0))
    with noise(source()):
        assert rival.objective(setup_of("pni", eps=0.0))(system(rival), *toy_data(), 0).keys() == {"clean_ce"}
    with pytest.raises(InputError, match="eps is 0; rival pni allowed: above 0"):
        make_rival("pni").check(setup_of("pni", eps=0.0))
