from __future__ import annotations

import torch
from torch import Tensor

from squint import Ensemble
from squint.evaluation.detection.outputs import WithFeatures, deployments
from squint.models import small_cnn

Setting = tuple[Ensemble, Tensor, Tensor]


def test_features_follow_the_logits_on_the_same_draws(random_ensemble: Setting) -> None:
    ens, x, _ = random_ensemble
    ens.chunk = 8
    asked = x[:3].clone().requires_grad_()
    outputs = WithFeatures(ens).member_logits(asked, 5, generator=torch.Generator().manual_seed(2))
    logits, features = ens.logits_and_features(x[:3], 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(outputs[..., :4], logits)
    for member, first in enumerate(features):
        assert torch.equal(outputs[0, member, :, 4:], first)
    assert not torch.equal(outputs[0, ..., 4:], outputs[1, ..., 4:])
    (slope,) = torch.autograd.grad(outputs[..., 4:].sum(), asked)
    assert slope.abs().sum() > 0


def test_narrow_and_still_members_are_padded_and_repeated() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [small_cnn(4, 1, 4), small_cnn(4, 1, 2)]
    ens = Ensemble(nets, 2).eval()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs = WithFeatures(ens).member_logits(x, 3)
    assert outputs.shape == (3, 2, 5, 4 + 16)
    assert (outputs[:, 1, :, 4 + 8 :] == 0).all()
    assert torch.equal(outputs[0], outputs[2])


def test_deployments_come_in_batches_of_images(random_ensemble: Setting) -> None:
    ens, x, _ = random_ensemble
    generator = torch.Generator().manual_seed(0)
    parts = list(deployments(ens, x[:7], draws=3, count=2, generator=generator, batch_size=4))
    assert [tuple(part.shape) for part in parts] == [(2, 3, 2, 4, 4), (2, 3, 2, 3, 4)]
    assert not any(part.requires_grad for part in parts)
