"""Member-aware attacks against exhaustive search, and MORA's weights against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from squint import attacks
from squint._checks import InputError
from squint.attacks.arc import unit_logits
from squint.attacks.mora import mora_objective, unit_weights
from squint.attacks.objectives import margin
from squint.attacks.targeted import effective_units, pooled_target_margin
from tests.attacks.models import Member, NoisyLinear

Attack = Callable[..., Tensor]
EPS = 0.1


def pooled(model: Member, x: Tensor, y: Tensor) -> Tensor:
    return margin(model.member_logits(x).double(), y)


@pytest.mark.parametrize("sharpness", [5.0, 60.0])
@pytest.mark.parametrize(
    "attack",
    [
        partial(attacks.arc, eot=1, bank_draws=1),
        partial(attacks.mora, steps=30),
        partial(attacks.mora, steps=30, ensemble_term="probability"),
        partial(attacks.targeted, eot=2),
        partial(attacks.apgd_targeted, steps=50),
    ],
    ids=["arc", "mora", "mora-probability", "targeted", "apgd_targeted"],
)
def test_ensembles_in_the_plane_fall_where_exhaustive_search_breaks_them(
    attack: Attack, sharpness: float, generator: torch.Generator
) -> None:
    # Two pixels, three members whose boundaries cross in the middle: the whole ball can be searched.
    model = Member(sharpness * torch.randn(3, 5, 2, generator=generator))
    x = 0.3 + 0.4 * torch.rand(80, 1, 1, 2, generator=generator)
    y = model(x).argmax(-1)
    line = torch.linspace(-EPS, EPS, 41)
    grid = torch.cartesian_prod(line, line).view(-1, 1, 1, 1, 2)
    best = torch.stack([pooled(model, x + shift, y) for shift in grid]).amax(0)
    found = pooled(model, attack(model, x, y, eps=EPS, generator=generator), y)
    assert (best > 0).sum() >= 40
    assert (found > 0)[best > 0.02].float().mean() >= 0.95


def test_arc_in_l2_breaks_what_an_exhaustive_search_of_the_disc_does(generator: torch.Generator) -> None:
    model = Member(60.0 * torch.randn(3, 5, 2, generator=generator))
    x = 0.3 + 0.4 * torch.rand(80, 1, 1, 2, generator=generator)
    y = model(x).argmax(-1)
    line = torch.linspace(-EPS, EPS, 41)
    grid = torch.cartesian_prod(line, line)
    disc = grid[grid.norm(dim=1) <= EPS].view(-1, 1, 1, 1, 2)
    best = torch.stack([pooled(model, x + shift, y) for shift in disc]).amax(0)
    points = attacks.arc(model, x, y, eps=EPS, norm="l2", eot=1, bank_draws=1, generator=generator)
    found = pooled(model, points, y)
    assert (points - x).flatten(1).norm(dim=1).max() <= EPS + 1e-6
    assert (best > 0).sum() >= 40
    assert (found > 0)[best > 0.02].float().mean() >= 0.95


def test_mora_weights_equal_finite_differences(generator: torch.Generator) -> None:
    z = 4 * torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    y, c = torch.tensor([0, 1, 2]), torch.tensor([3, 0, 1])

    def advantage(logits: Tensor) -> Tensor:
        q = (0.2 * logits).softmax(-1).mean(0)
        return q.gather(1, c[:, None]).log()[:, 0] - q.gather(1, y[:, None]).log()[:, 0]

    weights, h = unit_weights(z, y, c), 1e-5
    for unit in range(5):
        shift = torch.zeros_like(z)
        shift[unit, torch.arange(3), c] = h
        slope = (advantage(z + shift) - advantage(z - shift)) / (2 * h)
        torch.testing.assert_close(weights[unit], slope * 5 / 0.2, rtol=1e-7, atol=1e-9)


def test_mora_spends_nothing_on_units_that_err_already() -> None:
    z = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    z[0, 0, 0], z[0, 1, 0] = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 3.0, 1.0])
    z.requires_grad_()
    (slope,) = torch.autograd.grad(mora_objective(torch.tensor([0]), beta=1.0)(z).sum(), z)
    assert slope[0, 0].abs().sum() > 0
    assert not slope[0, 1].any()


def test_mora_without_the_units_term_is_the_pooled_prediction_at_unit_gap() -> None:
    z = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64).log().view(1, 1, 1, 4)
    y = torch.tensor([0])
    # In units of the first gap, log 2, the log-probabilities are 2, 1, 0, 0 up to a shift.
    exact = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=torch.float64).log_softmax(0)
    assert float(mora_objective(y, beta=0.0)(z)) == pytest.approx(-float(exact[0]))
    assert float(mora_objective(y, beta=0.0, targets=torch.tensor([2]))(z)) == pytest.approx(float(exact[2]))


def test_units_of_a_single_member_are_groups_of_its_draws() -> None:
    draws = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 2, 3)
    assert unit_logits(draws)[:, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    assert unit_logits(draws[:2])[:, 0, 0].tolist() == [0.0, 1.0]
    assert unit_logits(draws.expand(8, 3, 2, 3)).shape == (3, 2, 3)


def test_effective_units_count_who_carries_the_target() -> None:
    z = torch.zeros(6, 1, 1, 2, dtype=torch.float64)
    target = torch.tensor([1])
    assert float(effective_units(z, target)) == pytest.approx(6)
    z[1:, ..., 0] = 50.0
    assert float(effective_units(z, target)) == pytest.approx(1)
    y = torch.tensor([0])
    swapped = pooled_target_margin(y, target)(z)
    assert float(swapped) == pytest.approx(-50 * 5 / 6)
    z[:, ..., 0] = 50.0
    agreed = float(margin(z, y, targets=target))
    assert float(pooled_target_margin(y, target)(z)) == pytest.approx(agreed)


def test_arc_counts_its_draws(generator: torch.Generator) -> None:
    model = NoisyLinear(2, 12, 3, 0.5)
    x, y = torch.rand(4, 3, 2, 2, generator=generator), torch.tensor([0, 1, 2, 0])
    attacks.arc(model, x, y, eps=0.1, steps=2, restarts=1, eot=4, bank_draws=6, generator=generator)
    # The bank's first score, then per walk the units' order and for each of two a gradient and a score.
    assert sum(model.units) == 6 + 2 * (4 + 2 * (4 + 6))


def test_member_attacks_check_their_own_options(generator: torch.Generator) -> None:
    model = NoisyLinear(2, 12, 3, 0.5)
    x, y = torch.rand(4, 3, 2, 2, generator=generator), torch.tensor([0, 1, 2, 0])
    with pytest.raises(InputError, match="betas is 2"):
        attacks.mora(model, x, y, eps=0.1, betas=(2.0,))
    with pytest.raises(InputError, match="num_targets is 0"):
        attacks.mora(model, x, y, eps=0.1, betas=(), num_targets=0)
    with pytest.raises(InputError, match="ensemble_term is 'logs'"):
        attacks.mora(model, x, y, eps=0.1, ensemble_term="logs")
    with pytest.raises(InputError, match="max_classes is 0"):
        attacks.arc(model, x, y, eps=0.1, max_classes=0)
    with pytest.raises(InputError, match="refined is 4"):
        attacks.apgd_targeted(model, x, y, eps=0.1, screened=3, refined=4)


def test_members_vote_with_equal_weight(generator: torch.Generator) -> None:
    # One member's gradient is a thousand times the other's two: the two win the vote where they agree.
    weight = torch.zeros(3, 2, 2)
    weight[0, 1] = torch.tensor([1000.0, 0.0])
    weight[1, 1], weight[2, 1] = torch.tensor([-1.0, 0.3]), torch.tensor([-1.0, 0.3])
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    found = attacks.member_pgd(Member(weight), x, y, eps=0.1, generator=generator)
    torch.testing.assert_close(found - x, torch.tensor([-0.1, 0.1]).view_as(x))
    drowned = attacks.pgd(Member(weight), x, y, eps=0.1, loss="mean_logits_margin", generator=generator)
    torch.testing.assert_close(drowned - x, torch.tensor([0.1, 0.1]).view_as(x))
