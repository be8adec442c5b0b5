"""A study over seeds: verdicts from made-up runs with known outcomes, and one small real study."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import squint.study.run
import squint.study.seeds
from squint._checks import InputError
from squint.evaluation.equivalence import equivalence
from squint.study.config import RecipeConfig
from squint.study.keeping import held
from squint.study.pairs import outcomes_of
from squint.study.recipes import checked
from squint.study.seeds import compare, print_verdicts, run_seeds
from tests.study.test_run import KilledError, StoppingBar, without_times

SETTINGS = [("pgd", "5/255"), ("pgd", "8/255")]
N = 2000


def correct(rng: np.random.Generator, base: np.ndarray[Any, Any], gain: float) -> np.ndarray[Any, Any]:
    """Return outcomes that turn a share `gain` of all images for the better (or the worse) and no other."""
    flipped = rng.random(len(base)) < abs(gain) / 0.5
    return np.where(flipped, 1.0 if gain > 0 else 0.0, base)


def made_up_run(
    folder: Path, seed: int, gains: dict[str, float], *, keep: bool = True
) -> tuple[Path, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    base = (rng.random(N) < 0.5).astype(np.float64)
    folder.mkdir(parents=True)
    (folder / "examples").mkdir()
    records = []
    for name, gain in gains.items():
        outcome = correct(rng, base, gain)
        arrays = {
            "settings": np.array([f"{attack} {eps}" for attack, eps in SETTINGS]),
            "correct": np.stack([outcome, base]),
            "clean_correct": np.ones(N),
        }
        if keep:
            np.savez_compressed(folder / "examples" / f"{name}.npz", allow_pickle=False, **arrays)
        for (attack, eps), values in zip(SETTINGS, (outcome, base), strict=True):
            records.append(
                {"system": name, "attack": attack, "eps": eps, "n": N, "clean_accuracy": 1.0,
                 "robust_accuracy": float(values.mean())}
            )  # fmt: skip
    systems = [
        {
            "name": name,
            "title": name.upper(),
            "tier": "A",
            "training_draws": 2,
            "training_seconds": 10.0 + seed,
        }
        for name in gains
    ]
    return folder, {"seed": seed, "systems": systems, "records": records}


GAINS = {"base": 0.0, "better": 0.1, "worse": -0.1, "same": 0.002}


def verdict_of(found: dict[str, Any], system: str, eps: str) -> dict[str, Any]:
    (verdict,) = (v for v in found["verdicts"] if (v["system"], v["eps"]) == (system, eps))
    return dict(verdict)


def test_known_differences_get_their_verdicts(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / str(seed), seed, GAINS) for seed in range(3)]
    found = compare(runs, "base")
    verdicts = {system: verdict_of(found, system, "5/255")["verdict"] for system in list(GAINS)[1:]}
    assert verdicts == {"better": "helps", "worse": "hurts", "same": "equivalent"}
    assert {verdict_of(found, s, "8/255")["verdict"] for s in list(GAINS)[1:]} == {"equivalent"}
    assert verdict_of(found, "better", "0")["attack"] == "clean"
    assert {(v["images"], v["seeds"]) for v in found["verdicts"]} == {(N, 3)}
    assert {v["reference"] for v in found["verdicts"]} == {"base"}


def test_a_verdict_pairs_images_within_their_seed(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / str(seed), seed, GAINS) for seed in (4, 9)]
    rows = []
    for path, _ in runs:
        ours, base = outcomes_of(path, "better", "pgd", "5/255"), outcomes_of(path, "base", "pgd", "5/255")
        assert ours is not None
        assert base is not None
        rows.append(ours - base)
    expected = equivalence(torch.stack(rows), 0.03).to_json()
    found = compare(runs, "base", 0.03)
    assert {k: v for k, v in verdict_of(found, "better", "5/255").items() if k in expected} == expected


def test_without_outcomes_the_seeds_are_compared(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / str(seed), seed, GAINS, keep=False) for seed in range(3)]
    verdict = verdict_of(compare(runs, "base"), "better", "5/255")
    assert (verdict["images"], verdict["seeds"], verdict["degrees"]) == (0, 3, 2)
    assert verdict["mean"] == pytest.approx(0.1, abs=0.02)


def test_accuracies_are_means_over_seeds_with_their_interval(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / str(seed), seed, GAINS) for seed in range(3)]
    entries = {(e["system"], e["eps"]): e for e in compare(runs, "base")["systems"]}
    entry = entries["better", "5/255"]
    values = [results["records"][2]["robust_accuracy"] for _, results in runs]
    assert entry["per_seed"] == values
    assert entry["accuracy"] == pytest.approx(sum(values) / 3)
    assert entry["t_ci95"][0] < entry["accuracy"] < entry["t_ci95"][1]
    assert (entry["training_draws"], entry["training_seconds"], entry["tier"]) == (2, 11.0, "A")
    alone = {(e["system"], e["eps"]): e for e in compare(runs[:1], "base")["systems"]}
    assert alone["better", "5/255"]["t_ci95"] is None


def test_a_record_that_is_missing_is_named(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / str(seed), seed, GAINS) for seed in range(2)]
    runs[1][1]["records"].pop()
    with pytest.raises(InputError, match="seed 1 hold no pgd at eps 8/255 on same"):
        compare(runs, "base")


def test_torn_outcomes_are_named(tmp_path: Path) -> None:
    path, _ = made_up_run(tmp_path / "run", 0, GAINS)
    (path / "examples" / "same.npz").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"same\.npz is no whole npz file"):
        outcomes_of(path, "same", "clean", "0")
    assert outcomes_of(path, "base", "square", "5/255") is None
    assert outcomes_of(path, "unknown", "pgd", "5/255") is None


def recipe(**changes: Any) -> Any:
    member = {"weight_bits": 2, "activation_bits": 4, "first_last_bits": 8, "input_bits": 2}
    system = {"members": [member, member], "training_draws": 1, "draws": 1}
    plain: dict[str, Any] = {
        "name": "tiny", "dataset": "digits", "model": "small_cnn", "width": 2, "eps": "24/255", "curve": [],
        "train": {"epochs": 1, "batch_size": 256, "calibration_images": 64, "accelerator": "cpu"},
        "attack": {"images": 12, "resubmissions": 2},
        "systems": {"first": system, "second": {**system, "objective": {"conditional_redundancy": 0.5}}},
        "headline": "first",
    }  # fmt: skip
    return checked(plain | changes, "test: ")


def test_a_small_study_runs_resumes_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squint.study.run, "write_report", lambda folder: folder)
    first = run_seeds(recipe(), [0], tmp_path)
    assert first["verdicts"][0]["seeds"] == 1
    trained = (tmp_path / "seed-0" / "weights" / "first.safetensors").stat().st_mtime_ns
    both = run_seeds(recipe(), [0, 3], tmp_path, resume=True)
    assert (tmp_path / "seed-0" / "weights" / "first.safetensors").stat().st_mtime_ns == trained
    assert json.loads((tmp_path / "verdicts.json").read_text()) == both
    assert (both["reference"], both["seeds"], both["margin"]) == ("first", [0, 3], 0.02)
    assert both["systems"][0]["per_seed"][0] == first["systems"][0]["per_seed"][0]
    (clean, robust) = both["verdicts"]
    assert (clean["attack"], robust["attack"], robust["eps"]) == ("clean", "pgd", "24/255")
    assert (robust["system"], robust["images"], robust["seeds"]) == ("second", 12, 2)
    assert robust["verdict"] == "undecided"  # twelve images say nothing
    with pytest.raises(InputError, match="seed-0"):
        run_seeds(recipe(), [0], tmp_path)


def test_a_stopped_study_goes_on_per_system_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at the second system's attack in the second seed: what is before it is only read."""
    monkeypatch.setattr(squint.study.run, "write_report", lambda folder: folder)
    whole = run_seeds(recipe(), [0, 3], tmp_path / "whole")

    class Stop(StoppingBar):
        def start(self, title: str, total: int) -> None:
            if self.titles.count(title) == 1:  # the second seed's
                super().start(title, total)
            else:
                self.titles.append(title)

    with pytest.raises(KilledError):
        run_seeds(recipe(), [0, 3], tmp_path / "again", bar=Stop("attack second", 0))
    folder = tmp_path / "again"
    kept = folder / "seed-3" / "systems" / "first.json"
    assert not kept.with_name("second.json").exists()
    before = kept.stat().st_mtime_ns
    resumed = Stop("", 0)
    found = run_seeds(recipe(), [0, 3], folder, resume=True, bar=resumed)
    assert resumed.titles == ["attack second"]
    assert kept.stat().st_mtime_ns == before
    assert found["verdicts"] == whole["verdicts"]
    assert without_times(found["systems"]) == without_times(whole["systems"])


@pytest.mark.parametrize(
    ("seeds", "options", "words"),
    [
        ([], {}, r"seeds is \[\]"),
        ([1, 1], {}, "each once"),
        ([-1], {}, "seeds is -1"),
        ([0], {"reference": "frist"}, "did you mean 'first'"),
        ([0], {"margin": 0.0}, "margin is 0"),
    ],
)
def test_bad_arguments_write_nothing(
    tmp_path: Path, seeds: list[int], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        run_seeds(recipe(), seeds, tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


def test_the_folder_of_all_seeds_is_held(tmp_path: Path) -> None:
    with held(tmp_path, make=True), pytest.raises(InputError, match="in use by another squint process"):
        run_seeds(recipe(), [0], tmp_path)
    assert not (tmp_path / "seed-0").exists()


def test_one_system_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    alone = recipe(systems={"first": {}})
    with pytest.raises(InputError, match="systems holds one system"):
        run_seeds(alone, [0], tmp_path)


def test_the_table_tells_every_verdict(tmp_path: Path) -> None:
    runs = [made_up_run(tmp_path / str(seed), seed, GAINS) for seed in range(3)]
    verdicts = {"seeds": [0, 1, 2], "reference": "base", "margin": 0.02, **compare(runs, "base")}
    out = io.StringIO()
    print_verdicts(verdicts, Console(file=out, width=100))
    text = out.getvalue()
    for part in ("clean images", "pgd at eps 5/255", "pgd at eps 8/255", "reference: BASE", "±2 points"):
        assert part in text
    lines = [line for line in text.splitlines() if "BETTER" in line]
    assert ["helps" in line for line in lines] == [False, True, False]
    assert "+1" in lines[1]


@pytest.mark.parametrize("name", ["ablation-digits", "ablation-cifar10"])
def test_ablations_change_one_thing_at_a_time_at_equal_draws(name: str) -> None:
    found = squint.study.recipes.load_recipe(name)
    base = found.systems["no-information"]
    assert found.headline_system == "no-information"
    assert (base.objective.redundancy, base.objective.conditional_redundancy) == (0, 0)
    assert {system.training_draws for system in found.systems.values()} == {base.training_draws}
    assert {system.members for system in found.systems.values()} == {base.members}
    assert {system.draws for system in found.systems.values()} == {base.draws}
    changed = {
        key: {f for f in vars(base.objective) if getattr(s.objective, f) != getattr(base.objective, f)}
        for key, s in found.systems.items()
    }
    assert changed == {
        "no-information": set(),
        "both": {"redundancy", "conditional_redundancy"},
        "conditional": {"conditional_redundancy"},
        "redundancy": {"redundancy"},
        "brown": {"redundancy", "conditional_redundancy"},
        "no-agreement": {"agreement"},
        "smoothness": {"smoothness", "smoothness_step"},
        "full": {"redundancy", "conditional_redundancy", "smoothness", "smoothness_step"},
    }
    brown = found.systems["brown"].objective
    assert brown.redundancy == -brown.conditional_redundancy > 0


def test_a_later_seed_s_folder_is_looked_at_before_the_first_is_run(tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="seed-1 is no run folder"):
        run_seeds(recipe(), [0, 1], tmp_path)
    assert not (tmp_path / "seed-0").exists()


def test_folders_are_looked_at_with_the_processes_that_will_do_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(squint.study.run, "write_report", lambda folder: folder)
    run_seeds(recipe(), [0], tmp_path)
    seen: list[int] = []

    def look(_: Path, config: RecipeConfig, **__: object) -> None:
        seen.append(config.train.devices)
        raise InputError("seen")

    def two(config: RecipeConfig) -> RecipeConfig:
        return replace(config, train=replace(config.train, devices=2))

    monkeypatch.setattr(squint.study.seeds, "with_devices", two)
    monkeypatch.setattr(squint.study.seeds, "check_folder", look)
    with pytest.raises(InputError, match="seen"):
        run_seeds(recipe(), [0], tmp_path, resume=True)
    assert seen == [2]
