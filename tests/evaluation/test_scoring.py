"""The scoring rules on models whose chance of erring is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from squint import Ensemble, quantize
from squint._checks import InputError
from squint._random import default_generator, random_integers
from squint.evaluation.scoring import Scores, deployed_draws, is_random, score
from squint.quantize import StochasticQuantizer

SURE = 40.0


class Coin(nn.Module):
    """One member that errs (prefers class 1 to 0) with the chance that the image's pixel says, per draw."""

    draws = 3

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del stratified
        u = torch.rand(draws, 1, len(x), generator=generator or default_generator())
        wrong = u < x.flatten(1)[:, 0]
        return torch.stack([SURE * ~wrong, SURE * wrong], -1)


def context_coin(x: Tensor) -> Tensor:
    """The same as a plain callable, its noise from squint's context."""
    u = (random_integers((len(x),), x.device).double() + 2**15 + 0.5) / 2**16
    wrong = u < x.flatten(1)[:, 0]
    return torch.stack([SURE * ~wrong, SURE * wrong], -1)


def coins(chance: float, n: int) -> tuple[Tensor, Tensor]:
    return torch.full((n, 1, 1, 1), chance), torch.zeros(n, dtype=torch.int64)


def majority_errs(chance: float, draws: int) -> float:
    return float(stats.binom.sf(draws // 2, draws, chance))


@pytest.mark.parametrize("chance", [0.1, 0.4, 0.7])
@pytest.mark.parametrize("draws", [1, 3, 5])
def test_three_rules_against_exact_values(chance: float, draws: int) -> None:
    n, resubmissions = 400, 64
    x, y = coins(chance, n)
    scores = score(Coin(), x, y, draws=draws, resubmissions=resubmissions, seed=1, keys=("rules", draws))
    errs = majority_errs(chance, draws)

    error = math.sqrt(errs * (1 - errs) / (n * resubmissions))
    assert abs(scores.accuracy - (1 - errs)) < 5 * error
    error = math.sqrt(chance * (1 - chance) / (n * resubmissions * draws))
    assert abs(scores.single_draw_accuracy - (1 - chance)) < 5 * error
    for tries in (1, 4, 10):
        estimates = torch.tensor(
            [math.comb(resubmissions - int(e), tries) for e in scores.errors], dtype=torch.float64
        ) / math.comb(resubmissions, tries)
        error = float(estimates.std()) / math.sqrt(n)
        survives = scores.persistent_accuracy(tries)
        assert survives is not None
        assert abs(survives - (1 - errs) ** tries) < 5 * error + 1e-12


def test_plain_callable_is_deployed_as_one_call() -> None:
    n, resubmissions, chance = 300, 64, 0.3
    x, y = coins(chance, n)
    scores = score(context_coin, x, y, draws=1, resubmissions=resubmissions, seed=2, keys=("plain",))
    assert scores.resubmissions == resubmissions
    assert scores.draws == 1
    assert abs(scores.accuracy - 0.7) < 5 * math.sqrt(0.21 / (n * resubmissions))
    assert scores.single_draw_accuracy == pytest.approx(scores.accuracy, abs=1e-6)


@pytest.mark.parametrize("tries", [1, 2, 3])
@pytest.mark.parametrize("chance", [0.0, 0.2, 0.55, 1.0])
def test_persistent_estimate_is_unbiased_exactly(chance: float, tries: int) -> None:
    """Enumerated over all counts of errors: its mean is (1 − p)^q."""
    resubmissions = 12
    mean = 0.0
    for errors in range(resubmissions + 1):
        scores = Scores(torch.tensor([errors]), resubmissions, torch.zeros(1), 1)
        estimate = scores.persistent_accuracy(tries)
        assert estimate is not None
        mean += estimate * float(stats.binom.pmf(errors, resubmissions, chance))
    assert mean == pytest.approx((1 - chance) ** tries, abs=1e-12)


def test_persistent_needs_four_times_as_many_resubmissions() -> None:
    scores = Scores(torch.tensor([3]), 39, torch.zeros(1), 1)
    assert scores.persistent_accuracy(10) is None
    assert Scores(torch.tensor([3]), 40, torch.zeros(1), 1).persistent_accuracy(10) is not None
    once = Scores(torch.tensor([0]), 1, torch.zeros(1), 1)
    assert once.persistent_accuracy(1) == 1.0
    assert once.persistent_accuracy(10) is None


def test_deterministic_model_is_asked_once() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    x, y = (
        torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.zeros(5, dtype=torch.int64),
    )
    for model in (network, Ensemble([network], draws=4)):
        calls.clear()
        scores = score(model, x, y, draws=4, resubmissions=64, seed=0, keys=())
        assert len(calls) == 1
        assert (scores.resubmissions, scores.draws, scores.random) == (1, 1, False)
        assert scores.persistent_accuracy(100) == scores.accuracy


def test_what_counts_as_random() -> None:
    still = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    noisy = quantize(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 4, 4, 2).eval()
    assert not is_random(still)
    assert not is_random(Ensemble([still]))
    assert is_random(noisy)
    assert is_random(Ensemble([still, noisy]))
    assert is_random(Coin())
    assert is_random(context_coin)


class Own(nn.Module):
    """A class of the user's own, which may draw noise of its own or say that it draws none."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise, self.calls = noise, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits = x.flatten(1)[:, :3]
        return logits + self.noise * torch.rand(logits.shape)


class Still(Own):
    draws_noise = False


def test_a_class_that_says_it_draws_no_noise_is_believed_and_asked_twice() -> None:
    x, y = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(5).long()
    assert is_random(Own(0.0))
    model = Still(0.0)
    assert not is_random(model)
    scores = score(model, x, y, draws=1, resubmissions=64, seed=0, keys=())
    assert (scores.resubmissions, scores.random, model.calls) == (1, False, 3)
    assert torch.equal(scores.errors, score(Own(0.0), x, y, draws=1, resubmissions=1, seed=0, keys=()).errors)


@pytest.mark.parametrize("wrapped", [False, True])
def test_noise_behind_a_class_that_denies_it_is_refused(wrapped: bool) -> None:
    x, y = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(5).long()
    model: nn.Module = Ensemble([Still(0.2)], draws=2) if wrapped else Still(0.2)
    before = torch.random.get_rng_state()
    with pytest.raises(InputError, match="Still says draws_noise = False, but two calls"):
        score(model, x, y, draws=1, resubmissions=4, seed=0, keys=())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("hidden", [0.0, 0.2])
def test_it_is_asked_behind_a_stochastic_quantizer_too(hidden: float) -> None:
    x, y = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(5).long()
    model = Ensemble([nn.Sequential(StochasticQuantizer(2), Still(hidden))], draws=2)
    assert is_random(model)
    if hidden:
        with pytest.raises(InputError, match="Still says draws_noise = False, but two calls"):
            score(model, x, y, draws=2, resubmissions=4, seed=0, keys=())
    else:
        assert score(model, x, y, draws=2, resubmissions=4, seed=0, keys=()).random


def test_deployed_draws() -> None:
    assert deployed_draws(Coin()) == 3
    assert deployed_draws(Ensemble([nn.Linear(1, 2)], draws=7)) == 7
    assert deployed_draws(context_coin) == 1


def test_stream_depends_on_seed_and_keys_only() -> None:
    x, y = coins(0.5, 50)

    def errors(seed: int, *keys: object) -> list[int]:
        scores = score(Coin(), x, y, draws=1, resubmissions=16, seed=seed, keys=keys)
        counts: list[int] = scores.errors.tolist()
        return counts

    assert errors(0, "a") == errors(0, "a")
    assert errors(0, "a") != errors(1, "a")
    assert errors(0, "a") != errors(0, "b")


def test_output_with_nan_errs() -> None:
    def broken(x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [1.0, torch.nan]])[: len(x)]

    x, y = coins(0.0, 3)
    scores = score(broken, x, y, draws=1, resubmissions=4, seed=0, keys=())
    assert scores.errors.tolist() == [0, 4, 4]


def test_labels_beyond_the_classes_are_refused() -> None:
    x, y = coins(0.0, 3)
    for model in (Coin(), context_coin):
        with pytest.raises(InputError, match=r"labels has values in \[2, 2\]; allowed: 0..1"):
            score(model, x, y + 2, draws=1, resubmissions=4, seed=0, keys=())
