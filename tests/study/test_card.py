"""The model card says what a ladder's record says, under every scoring rule."""

from __future__ import annotations

import json
from pathlib import Path

from squint.study.card import card
from squint.study.recipes import load_recipe

ROOT = Path(__file__).parents[2]


def test_every_scoring_rule_of_a_recorded_ladder_is_on_the_card(tmp_path: Path) -> None:
    (record,) = json.loads((ROOT / "results/standard-digits/records.json").read_text())
    results = json.loads((ROOT / "results/digits/results.json").read_text())
    recipe = load_recipe("digits")
    name = recipe.headline_system
    results["systems"] = [system for system in results["systems"] if system["name"] == name]
    results["records"] = [record]
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"abc")
    text = card(results, recipe, name, weights)
    details = record["details"]
    for share in (
        record["robust_accuracy"],
        record["single_draw_accuracy"],
        *record["persistent"].values(),
        *record["clean_persistent"].values(),
        details["known_randomness_accuracy"],
        details["known_randomness_clean_accuracy"],
        details["uint8_accuracy"],
        *(row["accuracy"] for row in details["sweep"]),
    ):
        assert f"{share:.1%}" in text
    assert "known randomness: 33.0% (not attacked: 96.0%)" in text
    assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in text  # SHA-256 of "abc"


def test_a_record_without_a_ladder_has_no_further_rules(tmp_path: Path) -> None:
    results = json.loads((ROOT / "results/digits/results.json").read_text())
    recipe = load_recipe("digits")
    name = recipe.headline_system
    results["systems"] = [system for system in results["systems"] if system["name"] == name]
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    assert "other rules" not in card(results, recipe, name, weights)


def test_a_flag_names_the_attacks_that_raised_it(tmp_path: Path) -> None:
    results = json.loads((ROOT / "results/digits/results.json").read_text())
    (trusted,) = json.loads((ROOT / "results/standard-digits/records.json").read_text())
    recipe = load_recipe("digits")
    name = recipe.headline_system
    results["systems"] = [system for system in results["systems"] if system["name"] == name]
    results["records"] = [*(r for r in results["records"] if r["system"] == name), trusted]
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    text = card(results, recipe, name, weights)
    (flag,) = text[text.index("Red flags:") :].splitlines()[2:-2]
    assert flag.startswith("- pgd: planted adversarial points")
    results["records"] = [trusted]
    assert "Red flags:\n\n- none\n" in card(results, recipe, name, weights)


def test_the_machine_that_trained_is_named_beside_those_that_attacked(tmp_path: Path) -> None:
    results = json.loads((ROOT / "results/digits/results.json").read_text())
    recipe = load_recipe("digits")
    name = recipe.headline_system
    results["systems"] = [system for system in results["systems"] if system["name"] == name]
    first, second = {"processor": "a", "cores": 2}, {"processor": "b", "cores": 1}
    results["environments"] = [{"hardware": machine} for machine in (first, second, first)]
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    line = "- hardware of the run, training and attacks: processor a, cores 2; processor b, cores 1"
    assert line in card(results, recipe, name, weights).splitlines()
