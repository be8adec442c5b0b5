"""Recipes: what is packaged, what is refused and in which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from squint._checks import InputError
from squint.study.config import RecipeConfig, config_hash, decisive, first_difference
from squint.study.problems import fields_at
from squint.study.recipes import (
    FAMILIES,
    MAX_RECIPE_BYTES,
    chosen_recipe,
    load_recipe,
    parse_recipe,
    read_recipe,
    recipe_names,
    to_yaml,
)
from tests.study.tiny import PLAIN, merged, tiny


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.headline_system in recipe.systems
    assert parse_recipe(to_yaml(recipe), name) == recipe


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10"])
def test_a_packaged_study_has_its_four_systems(name: str) -> None:
    """Full precision, deterministic, and the stochastic ensemble without and with its information term."""
    recipe = load_recipe(name)
    full, deterministic, without, with_information = recipe.systems.values()
    assert not any(member.quantized for member in full.members)
    assert [member.input_width for member in deterministic.members] == [0.0]
    assert with_information.members == without.members
    differing = first_difference(vars(without.objective), vars(with_information.objective))
    assert differing is not None
    assert differing.startswith("conditional_redundancy")
    assert all(system.objective.tier == "A" for system in recipe.systems.values())
    assert recipe.attack.attacks[0] == "seed"


@pytest.mark.parametrize("term", ["redundancy", "conditional_redundancy"])
def test_terms_between_members_need_two(term: str) -> None:
    system = {"members": [{}], "objective": {term: -0.1}}
    with pytest.raises(
        InputError, match=rf"members has 1 entry; allowed: two or more where objective.{term} "
    ):
        tiny(systems={"plain": system})
    tiny(systems={"plain": {**system, "members": [{}, {}]}})


def test_every_recipe_that_the_documentation_runs_is_there() -> None:
    root = Path(__file__).parents[2]
    texts = [path.read_text() for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))]
    named = {name for text in texts for name in re.findall(r"squint (?:run|train) ([a-z][\w./-]*)", text)}
    assert {"digits", "cifar10", "study", "hypothesis"} <= named
    known = {*FAMILIES, *recipe_names()}
    committed = {name for name in named if name.startswith("results/")}
    assert [name for name in committed if not (root / name).is_file()] == []
    assert {name for name in named - known - committed if not name.endswith(".yaml")} == set()


def test_the_packaged_names() -> None:
    assert {"digits", "fashion-mnist", "cifar10"} <= set(recipe_names())


DATASETS = ("digits", "fashion-mnist", "cifar10")
RIVALS = {
    "full-precision", "dorefa", "pact", "lsq", "empir", "random-precision", "rse", "pni", "adp", "gal",
    "dverge", "trs", "gradient-regularisation", "cure", "consistency", "adversarial-training",
}  # fmt: skip


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_study_holds_every_rival_and_the_system_itself(dataset: str) -> None:
    recipe = load_recipe(f"study-{dataset}")
    assert recipe.dataset == dataset
    assert {system.rival for system in recipe.systems.values()} >= RIVALS
    assert recipe.headline_system == "stochastic-information"
    without, own = recipe.systems["stochastic"], recipe.systems["stochastic-information"]
    assert own.members == without.members
    assert first_difference(vars(without.objective), vars(own.objective)) == (
        "conditional_redundancy (was 0.0, now 0.1)"
    )
    assert (own.rival, own.tier, without.tier) == (None, "A", "A")
    assert recipe.systems["adversarial-training"].tier == "C"
    assert recipe.equal_compute
    assert recipe.attack.attacks == ("seed",)
    assert recipe.attack.ladder == "quick"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_one_recipe_per_data_set(family: str) -> None:
    assert chosen_recipe(family, []).name == f"{family}-digits"
    for dataset in DATASETS:
        recipe = load_recipe(f"{family}-{dataset}")
        assert chosen_recipe(family, ["--eps", "1/255", "--dataset", dataset]) == recipe
        assert chosen_recipe(family, [f"--dataset={dataset}"]) == recipe
    assert chosen_recipe("digits", ["--dataset", "cifar10"]) == load_recipe("digits")


@pytest.mark.parametrize("words", [["--dataset", "mnist"], ["--dataset"], ["--dataset=folder:a"]])
def test_a_data_set_without_a_recipe_is_refused(words: list[str]) -> None:
    with pytest.raises(
        InputError, match=r"--dataset of study is '.*'; allowed: cifar10, digits, fashion-mnist"
    ):
        chosen_recipe("study", words)


FIRST = "systems.noisy.members.0."
BITS = "allowed: a whole number of bits in 1..8"


def parse(**changes: Any) -> RecipeConfig:
    return parse_recipe(yaml.safe_dump(merged(PLAIN, changes), sort_keys=False), "my.yaml")


def noisy(**changes: Any) -> dict[str, Any]:
    return {"systems": {"noisy": changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epss": 1}, "unknown key epss (did you mean 'eps'?)"),
        ({"train": {"epoch": 5}}, "unknown key train.epoch (did you mean 'epochs'?)"),
        ({"attack": {"image": 5}}, "unknown key attack.image (did you mean 'images'?)"),
        (noisy(drawz=2), "unknown key systems.noisy.drawz (did you mean 'draws'?)"),
        (noisy(members=[{"weight_bit": 2}]), f"unknown key {FIRST}weight_bit (did you mean 'weight_bits'?)"),
        (noisy(objective={"agree": 2}), "unknown key systems.noisy.objective.agree (did you mean 'agree"),
        (noisy(average=2), "unknown key systems.noisy.average"),
        ({"train": {"epochs": "five"}}, "train.epochs is 'five'; allowed: a valid integer"),
        ({"train": {"epochs": -1}}, "train.epochs is -1; allowed: greater than or equal to 0"),
        (noisy(members=[{"weight_bits": 9}]), f"{FIRST}weight_bits is 9; {BITS}"),
        (noisy(members=[{"input_bits": 0}]), f"{FIRST}input_bits is 0; {BITS}"),
        (noisy(members=[{"noise": "pink"}]), f"{FIRST}noise is 'pink'; allowed: 'uniform', 'logistic' "),
        (noisy(members=[]), "systems.noisy: members is empty; allowed: one member or more"),
        (noisy(training_draws=1), "systems.noisy: training_draws is 1; allowed: 2 or more where"),
        ({"eps": "5/0"}, "eps is '5/0'; allowed: a fraction such as 5/255 or a number in [0, 1]"),
        ({"eps": "-1/255"}, "eps is '-1/255'; allowed: a number in [0, 1]"),
        ({"eps": True}, "eps is True; allowed: a number in [0, 1]"),
        ({"eps": [1]}, "eps is [1]; allowed: a valid string"),
        ({"curve": ["8/255", "wide"]}, "curve is ['8/255', 'wide']; allowed: a fraction such as 5/255"),
        ({"dataset": "mnist"}, "dataset is 'mnist'; allowed: digits, fashion-mnist, cifar10, cifar"),
        ({"model": "resnet9"}, "model is 'resnet9'; allowed: small_cnn, resnet8, resnet20, resnet18 (did"),
        ({"patch": 9}, "patch is 9; allowed: less than or equal to 8"),
        ({"patch": 2}, "patch is 2 with small_cnn; allowed: 1, or a residual network"),
        ({"headline": "nosy"}, "headline is 'nosy'; allowed: plain, noisy (did you mean 'noisy'?)"),
        ({"attack": {"attacks": ["pdg"]}}, "attack.attacks is ['pdg']; allowed: seed, pgd, fgsm, pgd-eot10"),
        ({"attack": {"attacks": ["seed", "pgd"]}}, "allowed: every name once"),
        ({"attack": {"attacks": []}}, "attack.attacks is []; allowed: one or more of"),
        ({"systems": {"a/b": {}}}, "systems has 'a/b'; allowed: names of letters, digits, - and _"),
        ({"systems": {"a.training": {}}}, "systems has 'a.training'"),
        ({"systems": 5}, "systems is 5; allowed: a valid dictionary"),
        ({"train": {"draws": 2}}, "train.objective and train.draws are set"),
        ({"seed": -1}, "seed is -1; allowed: greater than or equal to 0"),
    ],
)  # fmt: skip
def test_refused_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(**changes)
    text = str(caught.value)
    assert text.startswith("my.yaml: ")
    assert message in text
    assert "\n" not in text


def test_every_mistake_is_named() -> None:
    with pytest.raises(InputError) as caught:
        parse(eps="5/0", train={"epochs": -1}, systems={"noisy": {"draws": 0}})
    for place in ("eps is '5/0'", "train.epochs is -1", "systems.noisy.draws is 0"):
        assert place in str(caught.value)


def test_no_systems() -> None:
    with pytest.raises(InputError, match=r"x: systems is empty; allowed: one system or more"):
        parse_recipe("name: a", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"x is not readable YAML at line \d: "),
        (
            "name: !!python/object/apply:os.system ['true']",
            "x is not readable YAML at line 1: could not determine",
        ),
        ("a: &a [1]\nb: *a", "x is not readable YAML at line 2: aliases are not allowed in a recipe"),
        ("name: a\nname: b", "x is not readable YAML at line 2: the key 'name' stands there twice"),
        ("name: \x00", "x is not readable YAML"),
        ("[1, 2]", "x holds list; needed: a mapping of recipe fields"),
        ("", "x holds NoneType"),
        ("just text", "x holds str"),
        ("1: 2", "x: "),
        ("[" * 5000, "x is not readable YAML"),
    ],
)
def test_text_that_is_no_recipe(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_recipe(text, "x")
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(to_yaml(tiny()))
    assert load_recipe(str(path)) == read_recipe(path) == tiny()
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_recipe(path)
    path.write_text("#" * (MAX_RECIPE_BYTES + 1))
    with pytest.raises(InputError, match="larger than 128 KiB"):
        read_recipe(path)
    with pytest.raises(InputError, match=r"no.yaml does not exist"):
        load_recipe(str(tmp_path / "no.yaml"))
    with pytest.raises(InputError, match=r"recipe is 'digitz'; allowed: .*did you mean 'digits'"):
        load_recipe("digitz")


def test_radii_may_be_numbers() -> None:
    recipe = parse(eps=0.02, curve=[0, "8/255"])
    assert (recipe.eps, recipe.curve) == ("0.02", ("0", "8/255"))


def test_headline_is_the_last_system_unless_named() -> None:
    assert tiny().headline_system == "noisy"
    assert tiny(headline="plain").headline_system == "plain"


def test_hash_depends_on_all_but_the_place_of_the_data() -> None:
    assert config_hash(tiny()) == config_hash(tiny(data_dir="elsewhere"))
    assert config_hash(tiny()) == config_hash(tiny(headline="noisy"))
    for changes in (
        {"seed": 1},
        {"eps": "1/255"},
        {"headline": "plain"},
        noisy(draws=3),
        {"train": {"epochs": 3}},
    ):
        assert config_hash(tiny()) != config_hash(tiny(**changes)), changes


def test_first_difference() -> None:
    a, b = decisive(tiny()), decisive(tiny(train={"epochs": 3}))
    assert first_difference(a, a) is None
    assert first_difference(a, b) == "train.epochs (was 2, now 3)"
    assert first_difference({"a": 1}, {"a": 1, "b": {"c": 2}}) == "b (was None, now {'c': 2})"


def test_fields_at() -> None:
    assert "systems" in fields_at(())
    assert "weight_bits" in fields_at(("systems", "train", "members", 3))
    assert "agreement" in fields_at(("systems", "members", "objective"))
    assert "epochs" in fields_at(("train",))
