"""Known collapses, asserted on the recorded study: they reproduce in kind, on digits at 48/255."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squint.report.results import Record, Results, parse_results
from squint.report.table import rows_of, select
from squint.study.folder import read_config, read_results
from squint.study.recipes import load_recipe

RUN = Path(__file__).parents[2] / "results" / "study-digits" / "seed-0"


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The record as it is stored."""
    return read_results(RUN)


@pytest.fixture(scope="module")
def study(plain: dict[str, Any]) -> Results:
    """The recorded study."""
    return parse_results(plain)


def headline(study: Results, system: str) -> Record:
    record = select(study, system, study.headline_radius)
    assert record is not None
    return record


def test_every_system_of_the_recipe_is_recorded_as_the_recipe_says(study: Results) -> None:
    recipe = load_recipe("study-digits")
    assert study.names() == list(recipe.systems)
    assert read_config(RUN).systems.keys() == recipe.systems.keys()
    for system in study.systems:
        assert system.bit_operations
        assert system.stored_bits
        assert system.training_seconds
        assert system.training_passes
        assert select(study, system.name, study.headline_radius, "pgd") is not None
        assert headline(study, system.name).preset == "quick"


def test_compute_is_equal_or_flagged(study: Results) -> None:
    ratios = {system.name: system.training_compute for system in study.systems}
    assert ratios["stochastic-information"] == 1.0
    for name, ratio in ratios.items():
        assert ratio is not None
        assert ratio >= 0.95, name


@pytest.mark.parametrize("system", ["empir", "adp"])
def test_ensembles_that_hide_their_gradient_fall_to_a_few_percent(study: Results, system: str) -> None:
    assert headline(study, system).clean_accuracy > 0.9
    assert headline(study, system).robust_accuracy < 0.1


def test_random_precision_loses_to_restarts_and_draws_over_precisions(study: Results) -> None:
    """What one draw per gradient and one start leave standing falls to many of both, on the same images."""
    ladder = headline(study, "random-precision-adversarial")
    with np.load(RUN / "examples" / "random-precision-adversarial.npz", allow_pickle=False) as kept:
        row = list(kept["settings"]).index(f"pgd {ladder.eps}")
        seed_protocol = float(kept["correct"][row][: ladder.n].mean())
    assert ladder.eot is not None
    assert ladder.eot > 1
    assert ladder.robust_accuracy < seed_protocol - 0.05
    assert headline(study, "random-precision").robust_accuracy < 0.1


def test_adversarial_training_stands(study: Results) -> None:
    bar = headline(study, "adversarial-training")
    assert bar.robust_accuracy > 0.25
    for fallen in ("full-precision", "empir", "adp", "random-precision"):
        assert bar.ci95[0] > headline(study, fallen).ci95[1]


def test_the_table_is_sorted_and_no_quick_figure_is_trusted(study: Results) -> None:
    rows = rows_of(study)
    robust = [row.robust for row in rows if row.robust is not None]
    assert robust == sorted(robust, reverse=True)
    assert not any(row.trusted for row in rows)
