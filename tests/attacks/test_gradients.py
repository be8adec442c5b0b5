from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from squint import _random
from squint._checks import InputError, InputTypeError
from squint.attacks.gradients import Units, nan_reported
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import margin, objective
from tests.attacks.models import Linear, NoisyLinear, interior_images

FEATURES, CLASSES = 12, 4


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = interior_images((6, 3, 2, 2), generator)
    return x, torch.randint(CLASSES, (6,), generator=generator)


def plain(model: NoisyLinear) -> nn.Module:
    """Return the model as a callable without members, its noise read from the context."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.forward(x)

    return Plain()


@pytest.mark.parametrize("loss", ["ce", "margin", "mean_ce", "dlr"])
@pytest.mark.parametrize("stratified", [False, True])
def test_two_passes_equal_one_for_a_callable(
    batch: tuple[Tensor, Tensor], loss: str, stratified: bool
) -> None:
    x, y = batch
    model = plain(NoisyLinear(1, FEATURES, CLASSES, 0.5))
    goal = objective(loss, y)
    whole = Units(model, y, 7, stratified=stratified).gradient(x, goal, 3)
    parts = Units(model, y, 7, stratified=stratified, chunk=3).gradient(x, goal, 3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-7)


def test_two_passes_equal_autograd_through_the_replayed_members(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    model = NoisyLinear(2, FEATURES, CLASSES, 0.5)
    value, slope = Units(model, y, 7, chunk=3).gradient(x, objective("ce", y), 5)
    leaf = x.clone().requires_grad_()
    z = model.member_logits(leaf, 7, generator=torch.Generator().manual_seed(5))
    exact = objective("ce", y)(z.double())
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(slope.float(), torch.autograd.grad(exact.sum(), leaf)[0], rtol=1e-5, atol=1e-7)
    assert model.weight.grad is None


@pytest.mark.parametrize("members", [False, True])
@pytest.mark.parametrize("stratified", [False, True])
def test_the_chunk_changes_no_noise_and_no_gradient(
    batch: tuple[Tensor, Tensor], members: bool, stratified: bool
) -> None:
    x, y = batch
    inner = NoisyLinear(2, FEATURES, CLASSES, 0.5)
    model = inner if members else plain(inner)
    goal = objective("ce", y)
    whole = Units(model, y, 8, stratified=stratified)
    noise = whole.logits(x, 3)
    assert not torch.equal(noise[0], noise[1]), "the draws are alike: nothing is tested"
    exact = whole.gradient(x, goal, 3)
    for chunk in (1, 7, 8):
        parts = Units(model, y, 8, stratified=stratified, chunk=chunk)
        torch.testing.assert_close(parts.logits(x, 3), noise, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(parts.gradient(x, goal, 3), exact, rtol=1e-5, atol=1e-7)


def test_a_model_that_draws_in_its_own_way_has_other_noise_in_every_chunk(
    batch: tuple[Tensor, Tensor],
) -> None:
    x, y = batch

    class Own:
        def member_logits(
            self,
            x: Tensor,
            draws: int = 1,
            *,
            generator: torch.Generator | None = None,
            stratified: bool = False,
        ) -> Tensor:
            del stratified
            return torch.rand(draws, 1, len(x), CLASSES, generator=generator)

    z = Units(Own(), y, 6, chunk=2).logits(x, 0)
    assert len({tuple(draw) for draw in z.flatten(1).tolist()}) == 6


@pytest.mark.parametrize("chunk", [2, 4])
@pytest.mark.parametrize("way", ["seeds and values", "seeds for members", "a seed for all"])
def test_no_noise_repeats_in_a_model_that_draws_more_than_its_seeds(
    batch: tuple[Tensor, Tensor], way: str, chunk: int
) -> None:
    x, y = batch

    class Mixed:
        """Takes seeds as an ensemble does, and its noise otherwise."""

        def member_logits(
            self,
            x: Tensor,
            draws: int = 1,
            *,
            generator: torch.Generator | None = None,
            stratified: bool = False,
        ) -> Tensor:
            del stratified
            assert generator is not None
            source, count = generator, draws
            if way == "seeds for members":
                # As many as there may be draws in a chunk.
                count = 2
            seeds = _random.next_seeds(generator, count)
            if way == "seeds for members":
                source = torch.Generator().manual_seed(seeds[0])
            elif way == "a seed for all":
                source = torch.Generator().manual_seed(_random.next_seed(generator))
            noise = torch.rand(draws, 1, len(x), CLASSES, generator=source)
            return noise * x.sum()

    units, goal = Units(Mixed(), y, 7, chunk=chunk), objective("mean_ce", y)
    z = units.logits(x, 0)
    assert len({tuple(draw) for draw in z.flatten(1).tolist()}) == 7
    # The second pass meets the noise of the first.
    leaf = x.clone().requires_grad_()
    wanted = goal((z / x.sum() * leaf.sum()).double())
    found = units.gradient(x, goal, 0)
    torch.testing.assert_close(found[0], wanted.detach())
    slope = torch.autograd.grad(wanted.sum(), leaf)[0]
    torch.testing.assert_close(found[1].float(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stratified", [False, True])
def test_pooled_gradient_estimates_the_gradient_of_the_expectation(stratified: bool) -> None:
    # Two classes, one pixel, gain g: the mean over u in (−½, ½) of sigmoid(g·(x + 2u)) has the derivative
    # [sigmoid(g(x + 1)) − sigmoid(g(x − 1))] / 2.
    model = NoisyLinear(1, 1, 2, 2.0)
    gain = model.weight.detach()[0, 1, 0] - model.weight.detach()[0, 0, 0]
    x, y = torch.full((1, 1), 0.4), torch.tensor([0])
    units = Units(model, y, 64, stratified=stratified)

    def wrong(z: Tensor) -> Tensor:
        return z.softmax(-1)[..., 1].mean((0, 1))

    slopes = torch.tensor([float(units.gradient(x, wrong, seed)[1]) for seed in range(60)])
    exact = (torch.sigmoid(gain * 1.4) - torch.sigmoid(gain * -0.6)) / 2
    error = slopes.std() / len(slopes) ** 0.5
    assert abs(slopes.mean() - exact) < 4 * error
    # g·sigmoid·(1 − sigmoid) lies in (0, g/4): a mean of 64 spreads by at most g/8 over √64, and 64 strata of
    # a smooth function are far better than that.
    assert slopes.std() < abs(gain) / 8 / (64 if stratified else 8)


def test_the_loss_is_pooled_once_not_averaged_over_calls(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    model = plain(NoisyLinear(1, FEATURES, CLASSES, 2.0))
    units = Units(model, y, 5)
    z = units.logits(x, 11).double()
    value, _ = units.gradient(x, objective("ce", y), 11)
    once = -z.softmax(-1).mean((0, 1)).log().gather(1, y[:, None])[:, 0]
    nested = torch.stack([objective("ce", y)(draw[None]) for draw in z]).mean(0)
    torch.testing.assert_close(value, once)
    assert (nested - once > 1e-3).any()


def test_several_losses_share_one_forward_pass(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    model = NoisyLinear(3, FEATURES, CLASSES, 0.5)
    units = Units(model, y, 4)

    def each(z: Tensor) -> Tensor:
        return torch.stack([margin(member, y) for member in z.tensor_split(3, dim=1)])

    losses, slopes = units.gradients(x, each, 2)
    assert losses.shape == (3, 6)
    assert model.units == [4]
    for member in range(3):
        alone = units.gradient(x, lambda z: each(z)[member], 2)  # noqa: B023
        torch.testing.assert_close((losses[member], slopes[member]), alone, rtol=1e-5, atol=1e-7)


def test_a_saturated_float32_model_keeps_its_gradient(generator: torch.Generator) -> None:
    x = interior_images((4, 3, 2, 2), generator)
    model = NoisyLinear(1, FEATURES, CLASSES, 0.0)
    y = model(x).argmax(1)
    with torch.no_grad():
        model.weight.mul_(300)
    _, slope = Units(model, y, 1).gradient(x, objective("ce", y), 0)
    _, tame = Units(model, y, 1).gradient(x, objective("margin", y), 0)
    assert (slope.flatten(1).abs().amax(1) > 0).all()
    # The runner-up dominates the others by e^(hundreds): cross-entropy and margin point the same way.
    torch.testing.assert_close(_unit(slope), _unit(tame), rtol=1e-4, atol=1e-4)


def _unit(slope: Tensor) -> Tensor:
    flat = slope.flatten(1)
    return flat / flat.abs().amax(1, keepdim=True)


@pytest.mark.parametrize("chunk", [None, 2])
def test_eot_counts_single_draws(batch: tuple[Tensor, Tensor], chunk: int | None) -> None:
    x, y = batch
    passes = 1 if chunk is None else 2
    model = NoisyLinear(2, FEATURES, CLASSES, 0.5)
    Units(model, y, 6, chunk=chunk).gradient(x, objective("ce", y), 0)
    assert sum(model.units) == 6 * passes
    inner = NoisyLinear(1, FEATURES, CLASSES, 0.5)
    Units(plain(inner), y, 6, chunk=chunk).gradient(x, objective("ce", y), 0)
    assert len(inner.units) == 6 * passes


def test_a_model_without_gradient_gives_zeros(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    _, slope = Units(lambda z: torch.zeros(len(z), CLASSES), y, 2).gradient(x, objective("ce", y), 0)
    assert slope.shape == x.shape
    assert not slope.any()


def test_gradients_are_available_under_no_grad(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    with torch.no_grad():
        _, slope = Units(NoisyLinear(1, FEATURES, CLASSES, 0.1), y, 1).gradient(x, objective("ce", y), 0)
    assert slope.abs().sum() > 0


def test_evaluation_mode_gives_every_part_its_own_mode_back(generator: torch.Generator) -> None:
    model = Linear((3, 2, 2), CLASSES, generator)
    model.train()
    model.part[1].eval()
    modes = [part.training for part in model.modules()]
    with evaluation_mode(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == modes


def test_input_errors_name_what_is_wrong(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    model = NoisyLinear(1, FEATURES, CLASSES, 0.0)
    goal = objective("ce", y)
    with pytest.raises(InputError, match=r"labels has values in \[9, 9\]"):
        Units(model, torch.full_like(y, 9), 1).logits(x, 0)
    with pytest.raises(InputError, match="targets has values"):
        Units(model, y, 1, targets=torch.full_like(y, CLASSES)).logits(x, 0)
    with pytest.raises(InputError, match="eot is 0"):
        Units(model, y, 0)
    with pytest.raises(InputError, match="chunk is 0"):
        Units(model, y, 1, chunk=0)
    with pytest.raises(InputError, match=r"needed: \(6, classes\)"):
        Units(lambda z: z, y, 1).gradient(x, goal, 0)
    with pytest.raises(InputTypeError, match="the model is str"):
        Units("resnet", y, 1)  # type: ignore[arg-type]

    def broken(z: Tensor) -> Tensor:
        return z.flatten(1)[:, :CLASSES] * torch.nan

    with pytest.raises(InputError, match="NaN for all 6 images"):
        Units(broken, y, 3).gradient(x, goal, 0)
    with nan_reported():
        assert Units(broken, y, 3).gradient(x, goal, 0)[0].tolist() == [math.inf] * 6


def test_nan_logits_are_the_largest_loss_of_their_images_alone(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    goal = objective("ce", y)

    def partly(z: Tensor) -> Tensor:
        logits = z.flatten(1)[:, :CLASSES]
        return torch.where(torch.arange(len(z))[:, None] < 2, torch.nan, logits)

    for chunk in (None, 1):
        loss, slope = Units(partly, y, 3, chunk=chunk).gradient(x, goal, 0)
        whole, sound = Units(lambda z: z.flatten(1)[:, :CLASSES], y, 3).gradient(x, goal, 0)
        assert loss[:2].tolist() == [math.inf] * 2
        torch.testing.assert_close(loss[2:], whole[2:])
        torch.testing.assert_close(slope[2:], sound[2:])


def test_the_global_random_state_is_left_alone(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    before = torch.random.get_rng_state()
    _random.seed(1)
    Units(NoisyLinear(2, FEATURES, CLASSES, 0.5), y, 4, stratified=True).gradient(x, objective("ce", y), 0)
    assert torch.equal(torch.random.get_rng_state(), before)
