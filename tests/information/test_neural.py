"""InfoNCE and CLUB with critics that are known to be optimal, then with fitted ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError
from squint.information import GaussianCritic, SeparableCritic, club, fit_critic, infonce

RHO = 0.8


def pair(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, n, d, generator=generator)
    return a, RHO * a + math.sqrt(1 - RHO**2) * b


def conditional(z1: Tensor, z2: Tensor) -> Tensor:
    """Return the true log p(z2_j | z1_i) up to a constant."""
    return -((z2.unsqueeze(0) - RHO * z1.unsqueeze(1)) ** 2).sum(-1) / (2 * (1 - RHO**2))


@pytest.mark.parametrize("d", [1, 4, 32])
def test_club_with_the_true_conditional(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    values = torch.stack([club(*pair(32, d, generator), conditional) for _ in range(100)])
    truth = d * RHO**2 / (1 - RHO**2)
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / 10
    assert truth > -0.5 * d * math.log(1 - RHO**2)


def ratio(z1: Tensor, z2: Tensor) -> Tensor:
    """Return the true log p(z2_j | z1_i) / p(z2_j) up to a constant."""
    return conditional(z1, z2) + z2.square().sum(-1) / 2


def test_infonce_with_the_true_ratio_is_below_and_close() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = -0.5 * math.log(1 - RHO**2)
    values = torch.stack([infonce(*pair(256, 1, generator), ratio) for _ in range(100)])
    error = float(values.std()) / 10
    # By Jensen the gap is at most (E r − 1)/n for the density ratio r of pairs, whose mean is 1/(1 − ρ²).
    gap = RHO**2 / (1 - RHO**2) / 256
    assert truth - gap - 4 * error < float(values.mean()) < truth + 4 * error


@pytest.mark.parametrize("n", [2, 16])
def test_infonce_never_exceeds_log_n(n: int) -> None:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    sure: Callable[[Tensor, Tensor], Tensor] = lambda a, b: -100 * torch.cdist(a, b)  # noqa: E731
    assert float(infonce(z, z, sure)) == pytest.approx(math.log(n), abs=1e-5)


def test_constant_critics_and_single_rows_give_zero() -> None:
    z1, z2 = pair(8, 2, torch.Generator().manual_seed(2))

    def flat(a: Tensor, b: Tensor) -> Tensor:
        return torch.zeros(a.shape[0], b.shape[0])

    for bound in (infonce, club):
        assert abs(float(bound(z1, z2, flat))) < 1e-6
        assert float(bound(z1[:1], z2[:1], conditional)) == 0


def test_gaussian_critic_is_a_log_density() -> None:
    generator = torch.Generator().manual_seed(3)
    critic = GaussianCritic(2, 1, generator=generator)
    z1 = torch.randn(3, 2, generator=generator)
    grid = torch.linspace(-30, 30, 20001).unsqueeze(1)
    mass = critic(z1, grid).exp().sum(1) * (60 / 20000)
    assert torch.allclose(mass, torch.ones(3), atol=1e-3)
    scores = critic(z1, grid[:3])
    assert critic.loss(z1, grid[:3]).item() == pytest.approx(-scores.diagonal().mean().item(), rel=1e-5)


def test_fitted_critics_bracket_the_information() -> None:
    generator = torch.Generator().manual_seed(4)
    z1, z2 = pair(4000, 1, generator)
    lower, upper = (kind(1, 1, hidden=32, generator=generator) for kind in (SeparableCritic, GaussianCritic))
    for critic in (lower, upper):
        fit_critic(critic, z1, z2, generator=generator, steps=250, batch=64)
    truth = -0.5 * math.log(1 - RHO**2)
    with torch.no_grad():
        below = torch.stack([infonce(*pair(256, 1, generator), lower) for _ in range(30)])
        above = torch.stack([club(*pair(256, 1, generator), upper) for _ in range(30)])
    assert 0.8 * truth < float(below.mean()) < truth + 4 * float(below.std()) / math.sqrt(30)
    assert float(above.mean()) > truth
    error = 4 * float(above.std()) / math.sqrt(30)
    assert abs(float(above.mean()) - RHO**2 / (1 - RHO**2)) < error + 0.15 * RHO**2 / (1 - RHO**2)


def test_both_are_differentiable_in_the_variables() -> None:
    z1, z2 = (z.double().requires_grad_() for z in pair(5, 2, torch.Generator().manual_seed(5)))
    assert torch.autograd.gradcheck(
        lambda a, b: club(a, b, conditional) + infonce(a, b, conditional), (z1, z2)
    )


def test_critics_depend_on_their_generator_alone() -> None:
    before = torch.random.get_rng_state()
    z1, z2 = pair(40, 2, torch.Generator().manual_seed(6))
    values = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(7)
        critic = SeparableCritic(2, 2, generator=generator)
        values.append(fit_critic(critic, z1, z2, generator=generator, steps=5, batch=16))
    assert values[0] == values[1]
    assert torch.equal(before, torch.random.get_rng_state())


def test_bad_arguments_are_named() -> None:
    z1, z2 = pair(8, 2, torch.Generator().manual_seed(8))
    with pytest.raises(InputError, match="critic returned shape"):
        infonce(z1, z2, lambda a, b: (a * b).sum(1))
    with pytest.raises(InputError, match="allowed: finite scores"):
        club(z1, z2, lambda a, b: a @ b.mT * math.nan)
    with pytest.raises(InputError, match="z2 has 3 rows"):
        club(z1, z2[:3], conditional)
    with pytest.raises(InputError, match="z1 contains NaN"):
        infonce(z1 * math.nan, z2, conditional)
    with pytest.raises(InputError, match="batch is 1"):
        fit_critic(SeparableCritic(2, 2), z1, z2, generator=torch.Generator(), batch=1)


def test_wrong_critics_are_named() -> None:
    z = torch.zeros(4, 2)
    with pytest.raises(InputTypeError, match="critic must be callable, got str"):
        infonce(z, z, "dot")  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="critic returned list"):
        infonce(z, z, lambda *_: [[0.0]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"critic returned torch\.int64"):
        club(z, z, lambda *_: torch.zeros(4, 4, dtype=torch.long))
    with pytest.raises(InputError, match="z1 has 2 features; allowed: 3"):
        infonce(z, z, SeparableCritic(3, 2))
    with pytest.raises(InputError, match="z2 has 2 features; allowed: 5"):
        club(z, z, GaussianCritic(2, 5))
    with pytest.raises(InputTypeError, match=r"z1 must be a torch\.Tensor"):
        fit_critic(SeparableCritic(2, 2), [1.0], z, generator=torch.Generator())  # type: ignore[arg-type]
