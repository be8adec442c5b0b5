"""What every attack promises, as one table of cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from squint import _random, attacks
from squint._checks import InputError, InputTypeError
from squint.attacks.objectives import objective
from tests.attacks.models import Linear, NoisyLinear, interior_images

Attack = Callable[..., Tensor]


def transfer_from(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
    return attacks.transfer([model], x, y, **options)  # type: ignore[arg-type]


BOTH_NORMS: dict[str, Attack] = {
    "fgsm": attacks.fgsm,
    "pgd": partial(attacks.pgd, steps=5, restarts=2, eot=2, momentum=0.5),
    "apgd": partial(attacks.apgd, steps=12, eot=2, loss="margin"),
    "apgd_targeted": partial(attacks.apgd_targeted, steps=10, screened=2, refined=1, loss="margin"),
    "targeted": partial(attacks.targeted, steps=4, refine_steps=4, num_targets=2, eot=2),
    "square": partial(attacks.square, steps=60, eot=2, renew_every=20),
    "spsa": partial(attacks.spsa, steps=3, directions=4),
    "member_pgd": partial(attacks.member_pgd, steps=4, eot=2),
    "arc": partial(attacks.arc, steps=3, restarts=2, eot=4, bank_draws=4, renew_every=2),
    "transfer": partial(transfer_from, steps=4),
}
LINF_ONLY: dict[str, Attack] = {
    "mora": partial(attacks.mora, steps=6, eot=2, betas=(0.5, 1.0), num_targets=1),
}
CASES = [(name, norm) for name in BOTH_NORMS for norm in ("linf", "l2")]
CASES += [(name, "linf") for name in LINF_ONLY]
NEEDS_MEMBERS = ("arc", "mora", "member_pgd")


def run(name: str, norm: str, model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
    if name in LINF_ONLY:
        return LINF_ONLY[name](model, x, y, **options)
    return BOTH_NORMS[name](model, x, y, norm=norm, **options)


def size(delta: Tensor, norm: str) -> Tensor:
    order = torch.inf if norm == "linf" else 2
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), order, dim=1)
    return length


@pytest.mark.parametrize(("name", "norm"), CASES)
@settings(max_examples=settings().max_examples // 10)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(3, 7), st.integers(3, 7)),
    eps=st.sampled_from([0.0, 1 / 255, 5 / 255, 0.3, 1.0]),
    seed=st.integers(0, 100),
)
def test_results_stay_within_the_budget(
    name: str, norm: str, shape: tuple[int, int, int, int], eps: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Pixels at 0 and 1 included: there the ball and the range cut one another.
    x = (torch.rand(shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    y = torch.randint(5, (shape[0],), generator=generator)
    model = NoisyLinear(2, x[0].numel(), 5, 0.3, seed)
    found = run(name, norm, model, x, y, eps=eps, generator=generator)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert found.min() >= 0
    assert found.max() <= 1
    # x ± eps is rounded once to float32 (half an ulp of 1 is 6e-8), an L2 norm over 147 elements a bit more.
    assert (size(found.double() - x.double(), norm) <= eps + (1e-7 if norm == "linf" else 1e-6)).all()
    assert not found.requires_grad


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_generator_reproduces_and_nothing_else_is_touched(name: str, norm: str) -> None:
    source = torch.Generator().manual_seed(3)
    x, y = interior_images((5, 3, 4, 4), source), torch.tensor([0, 1, 2, 3, 4])
    model = NoisyLinear(2, 48, 5, 0.3).train()
    before = torch.random.get_rng_state()
    kept = x.clone()
    first, again = (
        run(name, norm, model, x, y, eps=0.05, generator=torch.Generator().manual_seed(9)) for _ in range(2)
    )
    _random.seed(9)
    own = run(name, norm, model, x, y, eps=0.05)
    assert torch.equal(first, again)
    assert torch.equal(first, own)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(x, kept)
    assert model.training
    assert model.weight.grad is None
    assert model.weight.requires_grad


@pytest.mark.parametrize("name", [name for name in BOTH_NORMS if name not in NEEDS_MEMBERS])
def test_any_callable_is_attacked_in_evaluation_mode(name: str, generator: torch.Generator) -> None:
    x, y = interior_images((4, 3, 4, 4), generator), torch.tensor([0, 1, 2, 3])
    model = Linear((3, 4, 4), 5, generator).train()
    run(name, "linf", model, x, y, eps=0.05, generator=generator)
    assert not model.trained
    assert model.training
    assert model.part[1].training


@pytest.mark.parametrize("name", NEEDS_MEMBERS)
def test_member_attacks_say_that_they_need_members(name: str, generator: torch.Generator) -> None:
    x, y = interior_images((2, 3, 4, 4), generator), torch.tensor([0, 1])
    with pytest.raises(InputTypeError, match=rf"attacks\.{name} needs a model with member_logits"):
        run(name, "linf", Linear((3, 4, 4), 5, generator), x, y, eps=0.05)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_bad_input_is_refused_in_one_line(name: str, norm: str, generator: torch.Generator) -> None:
    x, y = interior_images((2, 3, 4, 4), generator), torch.tensor([0, 1])
    model = NoisyLinear(2, 48, 5, 0.1)
    with pytest.raises(InputError, match=r"eps is -0\.1"):
        run(name, norm, model, x, y, eps=-0.1)
    with pytest.raises(InputError, match=r"allowed: \[0, 1\]"):
        run(name, norm, model, x + 1, y, eps=0.1)
    with pytest.raises(InputError, match=r"labels has values in \[7, 7\]"):
        run(name, norm, model, x, y * 0 + 7, eps=0.1)


class Brittle(nn.Module):
    """Linear, but NaN for the even images as soon as they have moved by more than 0.03, in both members."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x, self.linear = x, NoisyLinear(2, x[0].numel(), 5, 0.0)

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        logits = self.linear.member_logits(x, draws, generator=generator, stratified=stratified)
        return logits.masked_fill(~self.answers(x)[:, None], torch.nan)

    def answers(self, x: Tensor) -> Tensor:
        moved = (x - self.x).flatten(1).abs().amax(1) > 0.03
        return ~(moved & (torch.arange(len(x)) % 2 == 0))


ITERATED = ["pgd", "apgd", "apgd_targeted", "targeted", "square", "spsa", "member_pgd", "mora", "arc"]


@pytest.mark.parametrize("name", ITERATED)
def test_nan_is_no_refuge(name: str, generator: torch.Generator) -> None:
    """An output that is NaN is an error: who meets one keeps the point, and goes on where there is none."""
    x, y = interior_images((4, 3, 4, 4), generator), torch.tensor([0, 1, 2, 3])
    model = Brittle(x)
    found = run(name, "linf", model, x, y, eps=0.05, generator=generator, start=x)
    assert found.isfinite().all()
    if name != "spsa":  # which sees the points beside its own, and none of them decides
        assert not model.answers(found)[::2].any()
    honest = run(name, "linf", model.linear, x, y, eps=0.05, generator=generator, start=x)
    pooled = objective("margin", y)
    clean, left, whole = (
        pooled(model.linear.member_logits(point, 1).double())[1::2] for point in (x, found, honest)
    )
    assert (left - clean >= 0.5 * (whole - clean)).all()


@pytest.mark.parametrize("name", ["pgd", "apgd", "mora"])
def test_a_gradient_that_turns_nan_is_stepped_back_from(name: str, generator: torch.Generator) -> None:
    """The logits stay finite: nothing says that the point is an error."""
    x, y = interior_images((4, 3, 4, 4), generator), torch.tensor([0, 1, 2, 3])

    class Poisoned(Brittle):
        def member_logits(self, x: Tensor, draws: int = 1, **noise: Any) -> Tensor:
            logits = self.linear.member_logits(x, draws, **noise)
            if logits.requires_grad:
                spoil = lambda slope: torch.where(self.answers(x)[:, None], slope, torch.nan)  # noqa: E731
                logits.register_hook(spoil)  # type: ignore[no-untyped-call]
            return logits

    model = Poisoned(x)
    found = run(name, "linf", model, x, y, eps=0.05, generator=generator, start=x)
    assert found.isfinite().all()
    pooled = objective("margin", y)
    before, after = (pooled(model.linear.member_logits(point, 1).double()) for point in (x, found))
    assert (after >= before).all()


def test_random_noise_has_the_norm_of_an_attack(generator: torch.Generator) -> None:
    x = interior_images((3, 3, 4, 4), generator)
    for norm in ("linf", "l2"):
        noise = attacks.random_noise(x, eps=0.05, norm=norm, generator=generator) - x
        torch.testing.assert_close(size(noise, norm), torch.full((3,), 0.05), rtol=1e-5, atol=0)
        assert abs(float(noise.sign().mean())) < 4 / noise.numel() ** 0.5
