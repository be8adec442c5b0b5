"""Full precision: the network and the mean loss, nothing else."""

from __future__ import annotations

import pytest

from squint.baselines import make_rival
from squint.baselines.fixed_pass import member_losses
from tests.baselines.models import value
from tests.baselines.tiny import network, setup_of, system, toy_data


def test_the_network_is_left_as_it_is() -> None:
    net = network()
    assert make_rival("full-precision").member(net, 0) is net


def test_the_loss_is_the_mean_cross_entropy() -> None:
    ens = system(make_rival("full-precision")).eval()
    x, y = toy_data()
    terms = make_rival("full-precision").objective(setup_of("full-precision"))(ens, x, y, 0)
    assert terms.keys() == {"member_ce"}
    expected = float(member_losses(ens.member_logits(x, 1), y).mean().detach())
    assert value(terms["member_ce"]) == pytest.approx(expected)
