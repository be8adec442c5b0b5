"""The hypothesis: what is trained and put together, at which draws and budgets, and one small real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import squint.study.run
from squint import data as D
from squint._checks import InputError
from squint.evaluation.budgets import QUICK
from squint.evaluation.settings import SEED_PROTOCOL
from squint.export import load
from squint.study import run_study
from squint.study.costs import epochs_of, passes_per_step
from squint.study.hypothesis import Plan, described, plan_of
from squint.study.recipes import load_recipe
from squint.study.systems import build_system
from tests.study.collections import COARSE, FINE, collection, hypothesis
from tests.study.test_run import KilledError, StoppingBar, without_times
from tests.study.tiny import tiny

THREE = {
    "alike": collection("Three alike", COARSE, COARSE, COARSE),
    "bits": collection("Three bit widths", COARSE, {**FINE, "weight_bits": 3}, FINE),
}


def three() -> Plan:
    """Return the plan of two collections of three members."""
    plan = plan_of(hypothesis(systems=THREE))
    assert plan is not None
    return plan


def test_other_recipes_have_no_plan() -> None:
    assert plan_of(tiny()) is None


def test_what_is_evaluated() -> None:
    """Members that collections share are trained once; alike members need no subsets."""
    plan = three()
    assert list(plan.recipe.systems) == [
        "alike", "bits",
        "member-1", "longer-1", "member-2", "member-3",
        "member-4", "longer-2", "member-5", "longer-3",
        "bits-12", "bits-13", "bits-23",
    ]  # fmt: skip
    assert plan.parts == {
        "alike": ("member-1", "member-2", "member-3"),
        "bits": ("member-1", "member-4", "member-5"),
        "bits-12": ("member-1", "member-4"),
        "bits-13": ("member-1", "member-5"),
        "bits-23": ("member-4", "member-5"),
    }
    alike, bits = plan.collections
    assert (alike.different, alike.longer, alike.equals) == (False, ("longer-1",), ("alike",))
    assert (bits.different, bits.longer) == (True, ("longer-1", "longer-2", "longer-3"))
    assert bits.equals == ("alike",)


def test_draws_passes_and_compute_are_equal() -> None:
    plan = three()
    for name, system in plan.recipe.systems.items():
        members = len(system.members)
        assert members * system.draws == 6
        setting = plan.setting(name, SEED_PROTOCOL)
        assert members * setting.eot == 6
        assert (setting.steps, setting.preset) == (20, "equal passes")
        for rung, scaled in zip(QUICK.rungs, plan.budget(name, QUICK).rungs, strict=True):
            for move, own in zip(rung.moves, scaled.moves, strict=True):
                assert members * own.eot == 3 * move.eot
        limit = plan.budget(name, QUICK).max_gradients
        assert limit is not None
        assert members * limit == 3 * 1_500
    compute = {n: epochs_of(plan.recipe, n) * passes_per_step(s) for n, s in plan.recipe.systems.items()}
    assert {compute[name] for name in compute if name.startswith("longer")} == {compute["bits"]}
    assert {compute[name] for name in compute if name.startswith("member")} == {compute["bits"] // 3}
    assert plan.budget("bits", QUICK).name == "quick, equal passes"


def test_members_start_from_the_weights_they_have_in_their_collection() -> None:
    plan = three()
    train = D.load("digits").train
    whole = build_system(plan.source, "bits", train)
    for name, place in (("member-4", 1), ("member-5", 2), ("longer-3", 2)):
        alone = plan.built(name, train)
        assert len(alone.members) == 1
        assert alone.draws == 6
        state, expected = alone.members[0].state_dict(), whole.members[place].state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    first = plan.built("member-1", train).members[0].state_dict()
    second = plan.built("member-2", train).members[0].state_dict()
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_members_of_a_collection_are_trained_from_seeds_of_their_own() -> None:
    plan = three()
    seeds = {plan.seed(name, 7) for name in ("member-1", "member-2", "member-3")}
    assert len(seeds) == 3
    assert plan.seed("member-1", 7) == 7
    # The same place in another collection.
    assert plan.seed("member-4", 7) == plan.seed("member-2", 7)
    assert seeds.isdisjoint({plan.seed(name, 8) for name in ("member-1", "member-2", "member-3")})


def test_members_are_described_by_what_differs() -> None:
    systems = hypothesis(systems=THREE).systems
    everyone = [m for system in systems.values() for m in system.members]
    assert described(everyone[0], everyone) == "2-bit weights"
    assert described(everyone[0], everyone[:3]) == "the one kind of member"
    grids = load_recipe("hypothesis-digits").systems["both"].members
    assert described(grids[0], grids) == "2-bit weights, input levels -0.33 to 1.00"


def test_the_grids_of_the_packaged_recipes_have_equal_steps() -> None:
    for name in ("hypothesis-digits", "hypothesis-fashion-mnist", "hypothesis-cifar10"):
        recipe = load_recipe(name)
        assert plan_of(recipe) is not None
        ranges = {m.input_range for system in recipe.systems.values() for m in system.members}
        assert len(ranges) == 3
        widths = [high - low for low, high in ranges]
        assert widths == pytest.approx([widths[0]] * 3)


@pytest.mark.parametrize(
    ("systems", "words"),
    [
        ({"alike": {"members": [COARSE]}}, "systems.alike has one member"),
        (
            {"bits": {"members": [COARSE, COARSE, FINE]}},
            "systems.bits has 3 members and 2 draws, alike has 2 and 2; allowed in a hypothesis",
        ),
        ({"bits": {"draws": 4}}, "systems.bits has 2 members and 4 draws"),
        (
            {"bits": {"objective": {"conditional_redundancy": 0.1}}},
            "systems.bits has terms between members; allowed in a hypothesis: redundancy 0",
        ),
        ({"alike": {"rival": "full-precision", "members": [{}, {}]}}, "systems.alike has rival"),
        ({"member-1": collection("x", COARSE, FINE)}, "systems has 'member-1', which a hypothesis needs"),
    ],
)
def test_collections_that_cannot_be_compared_write_nothing(
    systems: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        run_study(hypothesis(systems=systems), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_part_of_a_hypothesis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only is for comparisons; a hypothesis needs all of its systems"):
        run_study(hypothesis(), tmp_path / "run", only=["member-1"])
    assert not (tmp_path / "run").exists()


def test_draws_that_cannot_be_shared_are_refused() -> None:
    parts = {name: {**system, "draws": 1} for name, system in THREE.items()}
    with pytest.raises(InputError, match=r"3 draws over its 3 members; .* a multiple of 6"):
        plan_of(hypothesis(systems=parts))


def test_a_range_that_clips_pixels_is_refused() -> None:
    clipped = {**FINE, "input_range": [0.1, 1.0]}
    with pytest.raises(InputError, match=r"input_range is \[0.1, 1.0\]; allowed: two numbers with \[0, 1\]"):
        hypothesis(systems={"bits": collection("x", COARSE, clipped)})


def test_a_small_hypothesis_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squint.study.run, "write_report", lambda folder: folder)
    whole = run_study(hypothesis(), tmp_path / "whole")
    with pytest.raises(KilledError):
        run_study(hypothesis(), tmp_path / "stopped", bar=StoppingBar("attack member-2", 0))
    resumed = run_study(hypothesis(), tmp_path / "stopped", resume=True)
    assert without_times(resumed["records"]) == without_times(whole["records"])
    assert resumed["hypothesis"] == whole["hypothesis"]
    assert resumed["config_hash"] == whole["config_hash"]

    names = [system["name"] for system in whole["systems"]]
    assert names == ["alike", "bits", "member-1", "longer-1", "member-2", "member-3", "longer-2"]
    assert {record["draws"] * len_of(whole, record["system"]) for record in whole["records"]} == {4}
    assert {record["eot"] * len_of(whole, record["system"]) for record in whole["records"]} == {2}
    trained = {file.stem for file in (tmp_path / "whole" / "weights").iterdir()}
    assert trained == set(names)
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["hypothesis"] == whole["hypothesis"]
    roles = [(c["collection"], c["role"]) for c in whole["hypothesis"]["comparisons"]]
    assert roles == [
        ("alike", "averaging"),
        ("bits", "best member"), ("bits", "best member, equal compute"), ("bits", "equally quantized"),
    ]  # fmt: skip
    assert len(whole["hypothesis"]["conclusions"]) == 2
    collection, member = (
        load(tmp_path / "whole" / "weights" / f"{n}.safetensors") for n in ("bits", "member-3")
    )
    state, own = collection.members[1].state_dict(), member.members[0].state_dict()
    assert all(torch.equal(state[key], own[key]) for key in own)


def len_of(results: dict[str, Any], name: str) -> int:
    return next(int(system["members"]) for system in results["systems"] if system["name"] == name)


@pytest.mark.parametrize("change", [{"objective": {"agreement": 4.0}}, {"training_draws": 3}, {"epochs": 2}])
def test_collections_that_are_trained_otherwise_share_no_member(change: dict[str, Any]) -> None:
    systems = {
        "bits": collection("Bits", COARSE, FINE),
        "other": collection("Other", COARSE, COARSE) | change,
    }
    plan = plan_of(hypothesis(systems=systems | {"alike": collection("Alike", COARSE, COARSE)}))
    assert plan is not None
    assert not set(plan.parts["bits"]) & set(plan.parts["other"])
    assert set(plan.parts["bits"]) & set(plan.parts["alike"])
    for name, parts in plan.parts.items():
        whole = plan.recipe.systems[name]
        for part in (*parts, *next((c.longer for c in plan.collections if c.name == name), ())):
            alone = plan.recipe.systems[part]
            assert (alone.objective, alone.training_draws) == (whole.objective, whole.training_draws)
            assert part.startswith("longer") or alone.epochs == whole.epochs
    assert plan.collections[0].equals == ("alike",)


def test_equal_compute_is_no_matter_of_a_hypothesis() -> None:
    with pytest.raises(InputError, match="equal_compute is true; allowed in a hypothesis: false"):
        plan_of(hypothesis(equal_compute=True))
