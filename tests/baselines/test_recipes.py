"""Rivals in recipes: named and mixed, refused at start with the reason, run as a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import squint
from squint._checks import InputError
from squint.baselines import RIVALS, VotingEnsemble
from squint.ensemble import Ensemble
from squint.export.sizes import info_table
from squint.quantize import QuantizedNetwork
from squint.study import run_study
from squint.study.config import RecipeConfig
from squint.study.recipes import checked, parse_recipe, to_yaml
from squint.study.systems import build_system, describe_system
from tests.baselines.tiny import DRAWS, MEMBERS
from tests.study.tiny import PLAIN


def recipe_with(**systems: dict[str, Any]) -> RecipeConfig:
    return checked({**PLAIN, "systems": systems}, "")


def test_a_recipe_names_every_rival_and_reads_back_equal() -> None:
    systems = {
        name: {
            "rival": name,
            "members": [{}] * MEMBERS.get(name, 1),
            "training_draws": DRAWS.get(name, 1),
        }
        for name in RIVALS
    }
    recipe = recipe_with(**systems)
    assert parse_recipe(to_yaml(recipe), "again") == recipe


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ({"rival": "adpp"}, r"systems\.x: rival is 'adpp'; allowed: .*did you mean 'adp'"),
        ({"rival": "adp"}, r"systems\.x: members has 1 entries; rival adp allowed: 2 or more"),
        (
            {"rival": "adp", "rival_options": {"alfa": 1}},
            r"rival adp: unknown option alfa \(did you mean 'alpha'\?\)",
        ),
        ({"rival": "cure", "rival_options": {"step": -1}}, "rival cure: step is -1; allowed: greater than 0"),
        (
            {"rival": "random-precision", "rival_options": {"bits": [4]}},
            r"rival random-precision: bits is \[4\]; allowed: two precisions or more",
        ),
        ({"rival": "consistency"}, "training_draws is 1; rival consistency allowed: 2 or more"),
        (
            {"rival": "dorefa", "members": [{"weight_bits": 2}]},
            r"members ask for quantization; rival dorefa allowed: members without it",
        ),
        (
            {"rival": "gal", "members": [{}, {}], "objective": {"ensemble": 1.0}},
            "objective sets ensemble; rival gal allowed: none",
        ),
        ({"rival_options": {"alpha": 1}}, "rival_options is set without a rival"),
    ],
)
def test_what_a_rival_lacks_is_said_at_start(system: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe_with(x=system)


def test_a_study_without_radius_refuses_adversarial_training() -> None:
    plain = {**PLAIN, "eps": "0/255", "systems": {"x": {"rival": "adversarial-training"}}}
    with pytest.raises(
        InputError, match=r"systems\.x: eps is 0; rival adversarial-training allowed: above 0"
    ):
        checked(plain, "")


def test_a_loss_mixes_with_quantized_members() -> None:
    """ADP's loss on two differently quantized members of squint's own."""
    members = [{"weight_bits": 2, "activation_bits": 4}, {"weight_bits": 3, "activation_bits": 4}]
    recipe = recipe_with(mixed={"rival": "adp", "members": members})
    ens = build_system(recipe, "mixed", squint.data.load("digits").train)
    assert [type(member) for member in ens.members] == [QuantizedNetwork] * 2
    facts = describe_system("mixed", recipe.systems["mixed"], ens, 0.0)
    assert (facts["tier"], facts["weight_bits"]) == ("A", "2/3")


def test_rivals_are_counted_in_their_own_bits() -> None:
    recipe = recipe_with(
        plain={"rival": "full-precision"},
        dorefa={"rival": "dorefa", "rival_options": {"weight_bits": 2, "activation_bits": 4}},
        empir={"rival": "empir"},
        random={"rival": "random-precision"},
    )
    data = squint.data.load("digits").train
    built = {name: build_system(recipe, name, data) for name in recipe.systems}
    bits = {
        name: describe_system(name, recipe.systems[name], ens, 0.0)["weight_bits"]
        for name, ens in built.items()
    }
    assert bits == {"plain": "32", "dorefa": "2", "empir": "4/2/32", "random": "4-16"}
    plain, dorefa = (info_table(built[name], data.shape) for name in ("plain", "dorefa"))
    inner = [
        layer.multiplications for layer in plain.layers if ".conv2" in layer.name or ".conv3" in layer.name
    ]
    assert len(inner) == 2
    assert plain.bit_operations - dorefa.bit_operations == sum(inner) * (32 * 32 - 2 * 4)
    assert plain.packed_bytes > dorefa.packed_bytes
    # A prediction draws one of 4 to 16 bits for both operands: the mean of b^2, not the most.
    drawn = info_table(built["random"], data.shape)
    everywhere = sum(layer.multiplications * layer.passes for layer in drawn.layers)
    assert drawn.bit_operations == pytest.approx(everywhere * sum(b * b for b in range(4, 17)) / 13, abs=3)


def test_members_start_from_the_same_weights_in_every_system() -> None:
    recipe = recipe_with(plain={"rival": "full-precision"}, dorefa={"rival": "dorefa"}, own={"members": [{}]})
    data = squint.data.load("digits").train
    heads = []
    for name in recipe.systems:
        state = build_system(recipe, name, data).state_dict()
        heads += [value for key, value in state.items() if key.endswith("classifier.weight")]
    assert len(heads) == 3
    assert all(torch.equal(head, heads[0]) for head in heads)


def test_a_study_trains_rivals_and_evaluation_takes_them(tmp_path: Path) -> None:
    plain = {
        **PLAIN,
        "systems": {
            "empir": {"rival": "empir", "draws": 1},
            "random": {"rival": "random-precision", "draws": 2, "rival_options": {"adversarial": True}},
        },
    }
    recipe, run = checked(plain, ""), tmp_path / "run"
    run_study(recipe, run, attack=False)
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    terms = {entry["system"]: set(entry["terms"]) for entry in logged if entry.get("event") == "epoch"}
    assert terms == {"empir": {"member_ce", "total"}, "random": {"adversarial_ce", "total"}}
    test = squint.data.load("digits").test
    for name, kind in (("empir", VotingEnsemble), ("random", Ensemble)):
        ens = squint.load(run / "weights" / f"{name}.safetensors")
        assert type(ens) is kind
        report = squint.evaluate(
            ens, test, eps="24/255", attacks="seed", limit=8, resubmissions=4, tier=recipe.systems[name].tier
        )
        record = report.records[0].to_json()
        assert (record["tier"], record["draws"]) == (recipe.systems[name].tier, ens.draws)
