"""The climb on models whose worst case, or whose chance of an error, is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squint import _random
from squint._checks import InputError
from squint.attacks.modes import evaluation_mode
from squint.evaluation import ladder
from squint.evaluation.budgets import Budget, Move, Rung, tiny
from squint.evaluation.climbs import UNBROKEN
from squint.evaluation.ladder import climb
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.machine import in_memory
from squint.evaluation.scoring import score
from squint.evaluation.selection import DEPLOYED, SINGLE, Kept, error_share, selection_margin
from tests.evaluation.ladder_models import Coin, NoisyPair, pair_data

EPS = 0.05


def reach(model: NoisyPair) -> float:
    """Return how far the worst case moves the margin."""
    return EPS * float(model.weight.detach().abs().sum())


def test_finds_the_worst_case_of_a_random_linear_model() -> None:
    model = NoisyPair()
    x, y = pair_data(model, 12, margin=0.7 * reach(model))
    found = climb(model, x, y, EPS, tiny(steps=12))
    worst = model.worst(x, y, EPS)
    w = model.weight.detach().view(1, 4, 4) * (2 * y - 1).view(-1, 1, 1, 1)
    moved, least = ((w * (point - x)).flatten(1).sum(1) for point in (found.points[DEPLOYED], worst))
    assert bool((moved <= 0.99 * least).all()), "within one percent of the closed form"
    accuracies = [
        score(model, points, y, draws=4, resubmissions=256, seed=1, keys=("test",)).accuracy
        for points in (found.points[DEPLOYED], worst)
    ]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)
    for point in found.points.values():
        assert float((point - x).abs().max()) <= EPS + 1e-6


def test_says_which_rung_broke_which_image() -> None:
    model = NoisyPair(scale=0.05)
    near, y = pair_data(model, 4, margin=0.3 * reach(model))
    far, z = pair_data(model, 4, margin=1.6 * reach(model), seed=1)
    lost, v = pair_data(model, 2, margin=-1.0, seed=2)
    found = climb(model, torch.cat([near, far, lost]), torch.cat([y, z, v]), EPS, tiny(steps=8))
    assert found.broken_by.tolist() == [1] * 4 + [UNBROKEN] * 4 + [0] * 2
    assert [run.survivors for run in found.rungs] == [8, 4], "the lost are not attacked, the broken leave"
    assert bool((found.gradients[-2:] == 0).all())
    assert bool((found.gradients[4:8] > found.gradients[:4].max()).all())


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_nothing_is_retired_on_a_lucky_miss(p: float) -> None:
    """58 of 64 tosses of a coin with p = 0.8 come up with chance 0.02, twice in a row with 4e-4."""
    model = Coin(p)
    x, y = torch.full((6, 1, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64)
    found = climb(model, x, y, EPS, tiny(steps=1), seed=3)
    assert [run.survivors for run in found.rungs] == [6, 6]


def test_what_always_errs_is_retired() -> None:
    x, y = torch.full((6, 1, 4, 4), 0.5), torch.zeros(6, dtype=torch.int64)
    found = climb(Coin(0.999), x, y, EPS, tiny(steps=1))
    assert [run.survivors for run in found.rungs] == [0, 0]
    assert found.broken_by.tolist() == [0] * 6


def test_retirement_needs_fresh_resubmissions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank that shows only errors is not believed when fresh submissions are right."""
    real = ladder._State._bank

    def lucky(self: ladder._State, points: Tensor, purpose: str, number: int) -> dict[str, Tensor]:
        found = real(self, points, purpose, number)
        return found if purpose == "retirement" else {rule: -m.abs() - 1 for rule, m in found.items()}

    monkeypatch.setattr(ladder._State, "_bank", lucky)
    model = NoisyPair(scale=0.05)
    x, y = pair_data(model, 3, margin=3 * reach(model))
    assert [run.survivors for run in climb(model, x, y, EPS, tiny(steps=2)).rungs] == [3, 3]


def test_no_rung_worsens_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Kept]] = []

    class Watched(Kept):
        def __init__(self, point: Tensor, each: Tensor) -> None:
            super().__init__(point, each)
            seen.append((self.margin.clone(), self))

    monkeypatch.setattr(ladder, "Kept", Watched)
    model = NoisyPair()
    x, y = pair_data(model, 6, margin=0.9 * reach(model))
    climb(model, x, y, EPS, tiny(steps=3))
    assert len(seen) == 6, "two rules, before the first rung and after each of two"
    assert all(bool((kept.margin <= before).all()) for before, kept in seen)
    assert any(bool((kept.margin < before).any()) for before, kept in seen)


def test_each_rule_keeps_its_own_point() -> None:
    """Where one draw in four errs all the time, single draws are lost and the mean of four is not."""
    start = torch.zeros(1, 1)
    bold, sly = torch.ones(1, 1), torch.full((1, 1), 2.0)
    margins = {
        "start": {DEPLOYED: torch.tensor([[1.0]]), SINGLE: torch.tensor([[1.0]] * 4)},
        "bold": {DEPLOYED: torch.tensor([[-0.2]]), SINGLE: torch.tensor([[-0.2]] + [[0.1]] * 3)},
        "sly": {DEPLOYED: torch.tensor([[0.4]]), SINGLE: torch.tensor([[-1.0]] * 3 + [[9.0]])},
    }
    kept = {rule: Kept(start, each) for rule, each in margins["start"].items()}
    for name, point in (("bold", bold), ("sly", sly)):
        for rule, each in margins[name].items():
            kept[rule].offer(point, each)
    assert (float(kept[DEPLOYED].point), float(kept[SINGLE].point)) == (1.0, 2.0)


def test_selection_margin_is_the_share_of_errors_on_a_smooth_scale() -> None:
    sharp = torch.tensor([[-5.0], [5.0], [5.0], [5.0]], dtype=torch.float64)
    assert float(selection_margin(sharp)) == pytest.approx(0.1 * math.log(4), rel=1e-9)
    assert float(error_share(sharp)) == 0.25
    far = torch.tensor([[50.0], [90.0]], dtype=torch.float64)
    assert float(selection_margin(far - 1)) < float(selection_margin(far)) < math.inf
    assert float(selection_margin(torch.full((3, 1), -math.inf))) == 0.0


def test_streams_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: dict[str, set[int]] = {}
    real = _random.derive_seed

    def noted(base: int, *keys: object) -> int:
        value = real(base, *keys)
        seeds.setdefault(str(keys[0]), set()).add(value)
        return value

    monkeypatch.setattr(_random, "derive_seed", noted)
    model = NoisyPair()
    run_ladder(model, pair_data(model, 4, margin=0.5), EPS, tiny(steps=1), batch_size=2, counts=(1,))
    assert set(seeds) == {"attack", "selection", "score", "known"}
    everything = [seed for each in seeds.values() for seed in each]
    assert len(everything) == len(set(everything))


def test_the_callers_state_is_left_alone() -> None:
    model = NoisyPair().train()
    x, y = pair_data(model, 3, margin=0.5)
    state, own = torch.random.get_rng_state(), _random.default_generator().get_state()
    before = x.clone()
    climb(model, x, y, EPS, tiny(steps=1))
    assert model.training
    assert model.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(_random.default_generator().get_state(), own)
    assert torch.equal(x, before)


def test_equal_arguments_give_equal_climbs_and_batches_differ() -> None:
    model = NoisyPair()
    x, y = pair_data(model, 4, margin=0.9 * reach(model))
    first, again, other = (climb(model, x, y, EPS, tiny(steps=3), batch=b) for b in (0, 0, 1))
    assert torch.equal(first.points[DEPLOYED], again.points[DEPLOYED])
    assert torch.equal(first.margins[SINGLE], again.margins[SINGLE])
    assert not torch.equal(first.margins[DEPLOYED], other.margins[DEPLOYED])


def test_running_out_of_memory_halves_the_chunk_and_repeats_the_rung() -> None:
    """The result is that of a climb which began with the chunk that fits."""
    model = NoisyPair()
    x, y = pair_data(model, 4, margin=0.9 * reach(model))
    budget = tiny(steps=3, eot=8)
    expected = climb(model, x, y, EPS, budget, chunk=2)
    model.largest = 2
    found = climb(model, x, y, EPS, budget)
    assert [run.chunk for run in found.rungs] == [2, 2]
    for rule in (DEPLOYED, SINGLE):
        assert torch.equal(found.points[rule], expected.points[rule])
        assert torch.equal(found.margins[rule], expected.margins[rule])
    assert torch.equal(found.gradients, expected.gradients), "a failed attempt is not counted"
    model.largest = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        climb(model, x, y, EPS, budget)


def test_other_errors_are_not_taken_for_memory() -> None:
    calls: list[int | None] = []

    def broken(chunk: int | None) -> None:
        calls.append(chunk)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_memory(broken, None, 8)
    assert calls == [None]


def test_tf32_is_off_inside_and_as_it_was_afterwards() -> None:
    known: Any = torch.backends
    backends = (known.cuda.matmul, known.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        backends[0].fp32_precision = "tf32"
        with evaluation_mode(None):
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == ["tf32", before[1]]
    finally:
        backends[0].fp32_precision = before[0]


def test_a_plain_callable_has_no_member_rung() -> None:
    weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    budget = Budget(
        "members", (Rung("members", (Move("arc", 1, 1), Move("mora", 1, 1), Move("pgd", 10, 1))),)
    )
    x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
    found = climb(lambda t: t @ weight, x, y, 0.1, budget)
    assert found.rungs[0].skipped == (
        "arc: the model has no member_logits",
        "mora: the model has no member_logits",
    )
    assert found.broken_by.tolist() == [1]
    assert found.gradients.tolist() == [10]


def test_transfer_breaks_what_gives_no_gradient() -> None:
    """A staircase has a zero gradient everywhere; the slope behind it does not."""
    model = NoisyPair(scale=0.0, members=1)
    x, y = pair_data(model, 6, margin=0.5 * reach(model))

    def stairs(t: Tensor) -> Tensor:
        return model.member_logits((t * 255).round() / 255, 1)[0, 0]

    budget = Budget("black", (Rung("pgd", (Move("pgd", 8, 1),)), Rung("box", (Move("transfer", 8, 1),))))
    alone = climb(stairs, x, y, EPS, budget)
    assert alone.broken_by.tolist() == [UNBROKEN] * 6
    assert alone.rungs[1].skipped == ("transfer: there are no source models",)
    helped = climb(stairs, x, y, EPS, budget, sources={"plain": model})
    assert helped.broken_by.tolist() == [2] * 6


def test_a_limit_stops_further_moves() -> None:
    model = NoisyPair(scale=0.05)
    x, y = pair_data(model, 2, margin=3 * reach(model))
    moves = (Move("pgd", 5, 2), Move("pgd", 5, 2), Move("pgd", 5, 2))
    found = climb(model, x, y, EPS, Budget("b", (Rung("r", moves),), max_gradients=20))
    assert found.gradients.tolist() == [20, 20]
    assert found.rungs[0].skipped == ("pgd: the 20 gradients are spent",)


def test_progress_names_the_rung_and_its_survivors() -> None:
    model = NoisyPair(scale=0.05)
    x, y = pair_data(model, 3, margin=0.3 * reach(model))
    seen: list[tuple[str, int]] = []
    climb(model, x, y, EPS, tiny(steps=8), progress=lambda *what: seen.append(what))
    assert seen == [("targeted", 3), ("apgd", 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 1.5}, "eps is 1.5"),
        ({"y": torch.tensor([0, 7])}, r"labels has values in \[0, 7\]"),
        ({"budget": "quik"}, "did you mean 'quick'"),
        ({"resubmissions": 0}, "resubmissions is 0"),
        ({"x": torch.full((2, 1, 4, 4), 2.0)}, r"images has values in \[2, 2\]"),
    ],
)
def test_bad_input_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    model = NoisyPair()
    x, y = pair_data(model, 2, margin=1.0)
    arguments: dict[str, Any] = {"model": model, "x": x, "y": y, "eps": EPS, "budget": tiny(1), **change}
    with pytest.raises(InputError, match=message) as error:
        climb(**arguments)
    assert "\n" not in str(error.value)


def test_a_model_that_is_no_longer_random_is_asked_once() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return torch.cat([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))]).view(2, -1).T

    x, y = torch.full((2, 1, 4, 4), 0.6), torch.zeros(2, dtype=torch.int64)
    budget = Budget("one", (Rung("pgd", (Move("pgd", 1, 1),)),))
    climb(Counting(), x, y, EPS, budget, resubmissions=1)
    assert Counting.calls <= 5, "the shape, the clean images, one step, the incumbent and the candidate"
