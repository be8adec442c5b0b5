"""What budgets spend, and what their moves need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint._random import draw_noise
from squint.attacks.geometry import step_sizes
from squint.evaluation.budgets import (
    EXHAUSTIVE,
    PRESETS,
    QUICK,
    STANDARD,
    Budget,
    Move,
    Rung,
    named_budget,
    tiny,
)
from squint.evaluation.ladder import climb
from squint.evaluation.metering import Meter
from squint.evaluation.moves import attack
from squint.evaluation.rungs import TWIN, Assault, hidden_layers, obstacle, own_sources
from squint.quantize import attacker_view, quantizers
from tests.attacks.models import NoisyLinear
from tests.evaluation.ladder_models import NoisyPair, pair_data, small_ensemble


def assault(model: object, x: Tensor, y: Tensor) -> Assault:
    assert callable(model)
    return Assault(model, 3, 4, {}, x, y, 0.05, x, 0, (), None)


def safe_images(n: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """Return an ensemble with images, and the labels that it gives them by far."""
    model = small_ensemble()
    x = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = model.member_logits(x, 16, generator=torch.Generator().manual_seed(6)).mean((0, 1))
    gap = logits.topk(2).values.diff().abs().flatten()
    rows = gap.topk(n).indices
    return model, x[rows], logits.argmax(1)[rows]


def planned(budget: Budget, model: torch.nn.Module, x: Tensor, y: Tensor) -> list[int]:
    """Return the gradients of each rung, metered with one draw per gradient: draws cost in proportion."""
    on = replace(assault(model, x, y), sources=dict.fromkeys(("m0", "m1", "m2", TWIN), model))
    spent = []
    for rung in budget.rungs:
        spent.append(0)
        for place, move in enumerate(rung.moves):
            if obstacle(move, on) is not None:
                continue
            meter = Meter()
            searching = move.attack in ("spsa", "square")
            attack(replace(move, eot=1, steps=1 if searching else move.steps), place, on, meter)
            assert (meter.gradients == 0) == searching, "searches use no gradients"
            spent[-1] += meter.gradients * move.eot
    return spent


def linear() -> tuple[NoisyLinear, Tensor, Tensor]:
    """Return three noisy linear members with four classes, and one image."""
    return NoisyLinear(3, 16, 4, 0.1), torch.full((1, 1, 4, 4), 0.5), torch.tensor([1])


def test_quick_spends_1500_gradients() -> None:
    assert planned(QUICK, *linear()) == [1_280, 220]
    assert QUICK.max_gradients == 1_500


def test_a_climb_spends_what_is_planned() -> None:
    model = NoisyPair(scale=0.05)
    x, y = pair_data(model, 1, margin=2.5)
    found = climb(model, x, y, 1e-3, QUICK)
    # Two classes: one target instead of three.
    assert [run.gradients for run in found.rungs] == [20 * 8 + 100 * 8, 10 * 10 + 12 * 10]
    assert found.gradients.tolist() == [1_180]


def test_standard_keeps_within_20000_gradients() -> None:
    targeted, apgd, pgd, members, _, black_box = planned(STANDARD, *linear())
    views = tuple(move for move in STANDARD.rungs[4].moves if move.attack == "view_pgd")
    (paths,) = planned(Budget("paths", (Rung("paths", views),)), *safe_images(1))
    assert targeted == 1_280
    assert apgd == 2 * 2_000 + 3 * 20 * 20 + 2_000
    assert pgd == 200 * 20 + 3 * 50 * 10
    assert members == 5 * 3 * 3 * 20 + 3 * 18 * 20 + 16 * 3 * 20, "ARC, MORA and member by member"
    assert 1_900 <= paths <= 2_000
    # The twin takes one draw, which `planned` multiplies as if it took four.
    assert black_box == 25 * 4 * 4
    assert STANDARD.max_gradients == 20_000
    assert targeted + apgd + pgd + members + paths + black_box <= 20_000


@pytest.mark.parametrize("members", [1, 8])
def test_standard_keeps_within_20000_gradients_with_a_source(members: int) -> None:
    """Each member is a source, and so are the twin and a further model; no move is left out."""
    model, x, y = NoisyLinear(members, 16, 4, 0.1), *linear()[1:]
    own = [f"member {i}" for i in range(members if members > 1 else 0)]
    on = replace(assault(model, x, y), members=members, sources=dict.fromkeys((*own, TWIN, "other"), model))
    spent = 0
    for rung in STANDARD.rungs:
        for place, move in enumerate(rung.moves):
            meter = Meter()
            if move.attack in ("view_pgd", "spsa", "square"):
                # Layers in turn share the steps; this model has none. Searches use no gradients.
                spent += move.steps * move.eot if move.attack == "view_pgd" else 0
                continue
            attack(replace(move, eot=1), place, on, meter)
            spent += meter.gradients * move.eot
    assert 18_000 < spent <= 20_000


def test_last_iterates_are_reached_by_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def noted(name: str) -> object:
        return lambda *given, **settings: seen.update({name: settings["final_step_size"]}) or given[1]

    for name in ("pgd", "member_pgd", "spsa"):
        monkeypatch.setattr(f"squint.attacks.{name}", noted(name))
        attack(Move(name, 4, 2), 0, assault(*linear()), Meter())
    assert seen == dict.fromkeys(("pgd", "member_pgd", "spsa"), 0.05 / 100)


def test_a_path_through_the_layers_ends_on_short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step at each layer and several alike: what is judged is the last iterate of the whole path."""
    ensemble, x, y = safe_images(1)
    layers = len(hidden_layers(ensemble))
    assert layers > 1
    for each in (1, 3):
        seen: list[float] = []

        def noted(*given: Any, seen: list[float] = seen, **settings: Any) -> Any:
            first, last = settings["step_size"], settings["final_step_size"]
            seen.extend(step_sizes(first, last, settings["steps"]))
            return given[1]

        monkeypatch.setattr("squint.attacks.pgd", noted)
        attack(Move("view_pgd", each * layers, 2), 0, assault(ensemble, x, y), Meter())
        assert seen == pytest.approx(step_sizes(0.05 / 4, 0.05 / 100, each * layers))


def test_every_random_start_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, bool] = {}

    def noted(name: str) -> object:
        return lambda *given, **settings: seen.update({name: settings["random_start"]}) or given[1]

    monkeypatch.setattr("squint.attacks.arc", noted("arc"))
    for start in ("best", "random"):
        attack(Move("arc", 4, 2, start), 0, assault(*linear()), Meter())
        assert seen == {"arc": start == "random"}


@pytest.mark.slow
def test_standard_runs_every_kind_of_attack() -> None:
    model, x, y = safe_images(1)
    found = climb(model, x, y, 1e-4, STANDARD, sources={"a": small_ensemble(1, seed=1), "b": model})
    assert 15_000 < int(found.gradients) <= 20_000
    assert all(run.survivors == 1 and not run.skipped for run in found.rungs), "all six rungs ran whole"
    assert found.rungs[5].forwards >= 2 * 64 * 10 * 4 + 500 * 20, "SPSA and Square"


def test_presets_hold_the_protocols_rungs() -> None:
    assert set(PRESETS) == {"quick", "standard", "exhaustive"}
    for budget in (STANDARD, EXHAUSTIVE):
        assert len(budget.rungs) == 6
        for rung in budget.rungs:
            assert any(move.start == "random" for move in rung.moves), "one random start at least"
        for rung in budget.rungs[1:]:
            assert any(move.start == "best" for move in rung.moves), "the best points so far"
        assert {move.attack for rung in budget.rungs for move in rung.moves} == {
            *("targeted", "apgd", "apgd_targeted", "pgd", "arc", "mora", "member_pgd"),
            *("view_pgd", "spsa", "square", "transfer"),
        }
        paths = [m for m in budget.rungs[4].moves if m.attack == "view_pgd"]
        assert {(m.gradient, m.width_factor) for m in paths} >= {
            ("identity", 1.0),
            ("expected", 2.0),
            ("expected", 4.0),
            ("additive", 1.0),
        }
        assert budget.resubmissions >= 400, "a persistent attacker with a hundred tries"


def test_mora_runs_with_both_ensemble_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(*given: Tensor, ensemble_term: str, **_: object) -> Tensor:
        seen.append(ensemble_term)
        return given[1]

    monkeypatch.setattr("squint.attacks.mora", noted)
    for budget in (STANDARD, EXHAUSTIVE):
        seen.clear()
        for place, move in enumerate(budget.rungs[3].moves):
            if move.attack == "mora":
                attack(move, place, assault(*linear()), Meter())
        assert set(seen) == {"log", "probability"}, budget.name


def test_doubled_is_twice_the_steps_draws_and_starts() -> None:
    plain, twice = tiny(3, 2), tiny(3, 2).doubled()
    assert twice.max_gradients is None
    for before, after in zip(plain.rungs, twice.rungs, strict=True):
        count = len(before.moves)
        assert len(after.moves) == 2 * count
        assert all(move.start == "random" for move in after.moves[count:])
        for a, b in zip(before.moves, after.moves[:count], strict=True):
            assert (b.steps, b.eot, b.start) == (2 * a.steps, 2 * a.eot, a.start)
    assert twice.rungs[0].moves[0].refine == 6


def test_shared_steps_are_divided_among_the_members() -> None:
    model, x, y = safe_images(1)
    meter = Meter()
    attack(Move("member_pgd", 9, 2, shared=True), 0, assault(model, x, y), meter)
    assert meter.gradients == 9 // 3 * 2 * 3, "steps, draws, a gradient for each member"


def test_a_meter_counts_draws_and_leaves_outputs_alone() -> None:
    model = NoisyPair()
    x, _ = pair_data(model, 2, margin=1.0)
    meter = Meter()
    counted = meter.counted(model)
    assert hasattr(counted, "member_logits")
    leaf = x.clone().requires_grad_()
    out = counted.member_logits(leaf, 3, generator=torch.Generator().manual_seed(0))
    own = model.member_logits(x, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out, own)
    assert (meter.gradients, meter.forwards) == (0, 0), (
        "a pass with a graph counts when a gradient comes back"
    )
    torch.autograd.grad(out.sum(), leaf, retain_graph=True)
    torch.autograd.grad(out.sum(), leaf)
    assert (meter.gradients, meter.forwards) == (6, 0)
    with torch.no_grad():
        counted.member_logits(x, 5)
    assert (meter.gradients, meter.forwards) == (6, 5)
    assert not hasattr(Meter().counted(lambda t: t), "member_logits")


def test_hidden_layers_and_own_sources() -> None:
    model = small_ensemble(2)
    assert hidden_layers(model) == ["1.activation_quantizer", "3.activation_quantizer"]
    assert hidden_layers(lambda x: x) == []
    sources = own_sources(model)
    assert list(sources) == ["member 0", "member 1", TWIN]
    twin = sources[TWIN]
    assert isinstance(twin, torch.nn.Module)
    assert {q.rounding for q in quantizers(twin)} == {"nearest"}
    assert {q.rounding for q in quantizers(model)} == {"sample"}
    assert list(own_sources(small_ensemble(1))) == [TWIN]
    assert own_sources(NoisyPair()) == {}


def test_a_view_swaps_the_named_layers_only() -> None:
    model = small_ensemble(1)
    net = model.members[0]
    # Beyond the range only `identity` lets a gradient pass.
    x = torch.full((1, 1, 4, 4), 1.5)

    def slope(module: torch.nn.Module) -> float:
        leaf = x.clone().requires_grad_()
        with draw_noise([1]):
            out = module(leaf)
        return float(torch.autograd.grad(out.sum(), leaf)[0].abs().sum())

    assert slope(net) == slope(attacker_view(net, "identity", layers=["*.activation_quantizer"])) == 0
    # The first layer's own range covers the image, so only the image's quantizer cuts here.
    assert slope(attacker_view(net, "identity", layers=["input_*"])) > 0
    assert slope(attacker_view(net, "identity", layers=["input_*", "network.1.*", "3.act*"])) > 0
    with pytest.raises(InputError, match=r"layers names 'conv\*', which matches no quantizer"):
        attacker_view(net, "identity", layers=["conv*"])


def test_in_turn_divides_the_steps_and_each_does_not() -> None:
    model, x, y = safe_images(1)
    for layers, gradients, candidates in (("in_turn", 6, 1), ("each", 12, 2), ("together", 6, 1)):
        meter = Meter()
        move = Move("view_pgd", 6, 1, layers=layers)  # type: ignore[arg-type]
        found = attack(move, 0, assault(model, x, y), meter)
        assert (meter.gradients, len(found)) == (gradients, candidates), layers
    few = Meter()
    attack(Move("view_pgd", 1, 1), 0, assault(model, x, y), few)
    assert few.gradients == 1, "no more layers than steps"


def test_obstacles() -> None:
    model, x, y = safe_images(1)
    flat = assault(lambda t: t, x.flatten(1), y)
    assert (
        obstacle(Move("square", 1, 1), flat) == "square: the images are not (batch, channels, height, width)"
    )
    assert obstacle(Move("view_pgd", 1, 1), flat) == "view_pgd (identity): the model has no hidden quantizers"
    assert obstacle(Move("view_pgd", 1, 1), assault(model, x, y)) is None


def test_budgets_refuse_nonsense() -> None:
    with pytest.raises(InputError, match="allowed: quick, standard, exhaustive"):
        named_budget("fast")
    with pytest.raises(InputError, match="no rung"):
        Budget("empty", ())
    with pytest.raises(InputError, match="two rungs alike"):
        Budget("twins", (Rung("a", (Move("pgd", 1, 1),)), Rung("a", (Move("pgd", 1, 1),))))
    with pytest.raises(InputError, match="steps is 0"):
        Move("pgd", 0, 1)
    assert named_budget("quick") is QUICK


def test_a_model_without_noise_is_attacked_with_one_draw_per_gradient() -> None:
    """More draws are the same draw: they would use the budget up and leave later rungs none."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4)).eval()
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    spent = [climb(net, x, y, 0.05, tiny(steps=2, eot=eot), resubmissions=1).gradients for eot in (1, 8)]
    assert torch.equal(spent[0], spent[1])
