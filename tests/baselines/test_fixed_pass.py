"""Further passes at a training pass's noise and batch statistics."""

from __future__ import annotations

import torch

import squint
from squint._random import noise
from squint.baselines.fixed_pass import FixedPass, input_gradients, member_losses, pair_cosines
from squint.ensemble import Ensemble
from tests.baselines.tiny import network, source, toy_data


def noisy() -> Ensemble:
    members = [squint.quantize(network(seed), 3, 3, 1) for seed in (0, 1)]
    ens = Ensemble(members, 2)
    squint.calibrate(ens, toy_data()[0])
    return ens.train()


def test_at_the_same_images_the_losses_are_those_of_the_first_pass() -> None:
    ens, (x, y) = noisy(), toy_data()
    with noise(source()):
        fixed = FixedPass(ens, x, 2)
        again, first = fixed.losses(x, y), member_losses(fixed.logits, y)
    # Statistics are applied in another order of rounding: an activation on a quantizer's edge may cross it.
    assert torch.isclose(again, first, atol=1e-5).float().mean() > 0.9
    assert torch.allclose(again, first, atol=0.05)


def test_an_examples_loss_depends_on_it_alone_and_no_statistics_move() -> None:
    ens, (x, y) = noisy(), toy_data()
    with noise(source()):
        fixed = FixedPass(ens, x, 1)
        before = {key: value.clone() for key, value in ens.named_buffers()}
        here = fixed.losses(x, y)
        moved = x.clone()
        moved[0] = 1 - moved[0]
        there = fixed.losses(moved, y)
    assert not torch.equal(here[:, 0], there[:, 0])
    assert torch.allclose(here[:, 1:], there[:, 1:], atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in ens.named_buffers())


def test_the_stream_of_noise_goes_on_as_after_one_pass() -> None:
    ens, (x, y) = noisy(), toy_data()
    with noise(source()):
        first = FixedPass(ens, x, 1)
        first.losses(x, y)
        after = ens.member_logits(x, 1)
    with noise(source()):
        ens.load_state_dict(ens.state_dict())
        FixedPass(ens, x, 1)
        assert torch.equal(ens.member_logits(x, 1), after)


def test_gradients_are_each_members_own() -> None:
    ens, (x, y) = noisy(), toy_data(5)
    x.requires_grad_()
    with noise(source()):
        losses = FixedPass(ens, x.detach(), 1).losses(x, y)
    gradients = input_gradients(losses, x)
    assert gradients.shape == (2, 5, 36)
    (second,) = torch.autograd.grad(losses[1].sum(), x)
    assert torch.equal(gradients[1], second.flatten(1))


def test_one_member_alone_loses_what_it_loses_among_all() -> None:
    ens, (x, y) = noisy(), toy_data()
    seen: list[int] = []
    for place, member in enumerate(ens.members):
        member.register_forward_pre_hook(lambda *_, place=place: seen.append(place))
    with noise(source()):
        fixed = FixedPass(ens, x, 2)
        together = fixed.losses(1 - x, y)
        for place in (1, 0):
            seen.clear()
            assert torch.allclose(fixed.losses_of(place, 1 - x, y), together[place : place + 1], atol=1e-6)
            assert set(seen) == {place}
        after = ens.member_logits(x, 1)
    with noise(source()):
        FixedPass(ens, x, 2)
        assert torch.equal(ens.member_logits(x, 1), after)


def test_vanishing_gradients_have_cosine_zero() -> None:
    gradients = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]], [[2.0, 2.0]]])
    assert torch.allclose(pair_cosines(gradients).squeeze(1), torch.tensor([0.0, 0.0, 1.0]))
