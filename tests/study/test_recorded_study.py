"""Known collapses, asserted on the recorded studies: they reproduce in kind on every data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.studies import STUDIES as TABULATED
from benchmarks.studies import table

from squint.report.results import Record, Results, parse_results
from squint.report.table import rows_of, select
from squint.study.folder import read_config, read_results
from squint.study.recipes import load_recipe

RESULTS = Path(__file__).parents[2] / "results"
DIGITS = RESULTS / "study-digits" / "seed-0"


@dataclass(frozen=True)
class Recorded:
    """A finished study: where it lies, its recipe, and what its networks reach.

    Attributes:
        folder: of the record.
        recipe: its name.
        clean: accuracy that ensembles hold above without attack.
        bar: accuracy that adversarial training holds above.
    """

    folder: Path
    recipe: str
    clean: float
    bar: float

    @property
    def results(self) -> Results:
        """What was measured."""
        return parse_results(read_results(self.folder))


STUDIES = {
    "digits": Recorded(DIGITS, "study-digits", clean=0.9, bar=0.25),
    "fashion-mnist": Recorded(RESULTS / "study-fashion-mnist", "study-fashion-mnist", clean=0.75, bar=0.25),
    "cifar10": Recorded(RESULTS / "study-cifar10", "study-cifar10", clean=0.55, bar=0.25),
}
every_study = pytest.mark.parametrize("recorded", STUDIES.values(), ids=STUDIES)


@pytest.fixture(scope="module")
def study() -> Results:
    """The study of digits."""
    return STUDIES["digits"].results


def headline(study: Results, system: str) -> Record:
    record = select(study, system, study.headline_radius)
    assert record is not None
    return record


@every_study
def test_every_system_of_the_recipe_is_recorded_as_the_recipe_says(recorded: Recorded) -> None:
    study, recipe = recorded.results, load_recipe(recorded.recipe)
    assert study.names() == list(recipe.systems)
    kept = read_config(recorded.folder)
    assert list(kept.systems) == list(recipe.systems)
    # The records are of trainings from before weights had a floor.
    train = replace(recipe.train, step_floor=0.0)
    assert (kept.model, kept.width, kept.patch, kept.eps, kept.train) == (
        recipe.model, recipe.width, recipe.patch, recipe.eps, train,
    )  # fmt: skip
    for system in study.systems:
        assert system.bit_operations
        assert system.stored_bits
        assert system.training_seconds
        assert system.training_passes
        assert select(study, system.name, study.headline_radius, "pgd") is not None
        assert headline(study, system.name).preset == "quick"


@every_study
def test_compute_is_equal_or_flagged(recorded: Recorded) -> None:
    ratios = {system.name: system.training_compute for system in recorded.results.systems}
    assert ratios["stochastic-information"] == 1.0
    for name, ratio in ratios.items():
        assert ratio is not None
        assert ratio >= 0.95, name


@every_study
@pytest.mark.parametrize("system", ["empir", "adp"])
def test_ensembles_that_hide_their_gradient_fall_to_a_few_percent(recorded: Recorded, system: str) -> None:
    record = headline(recorded.results, system)
    assert record.clean_accuracy > recorded.clean
    assert record.robust_accuracy < 0.1


def test_random_precision_loses_to_restarts_and_draws_over_precisions(study: Results) -> None:
    """What one draw per gradient and one start leave standing falls to many of both, on the same images."""
    ladder = headline(study, "random-precision-adversarial")
    with np.load(DIGITS / "examples" / "random-precision-adversarial.npz", allow_pickle=False) as kept:
        row = list(kept["settings"]).index(f"pgd {ladder.eps}")
        seed_protocol = float(kept["correct"][row][: ladder.n].mean())
    assert ladder.eot is not None
    assert ladder.eot > 1
    assert ladder.robust_accuracy < seed_protocol - 0.05
    assert headline(study, "random-precision").robust_accuracy < 0.1


@every_study
def test_adversarial_training_stands(recorded: Recorded) -> None:
    study = recorded.results
    bar = headline(study, "adversarial-training")
    assert bar.robust_accuracy > recorded.bar
    for fallen in ("full-precision", "empir", "adp", "random-precision"):
        assert bar.ci95[0] > headline(study, fallen).ci95[1]


@every_study
def test_the_table_is_sorted_and_no_quick_figure_is_trusted(recorded: Recorded) -> None:
    rows = rows_of(recorded.results)
    robust = [row.robust for row in rows if row.robust is not None]
    assert robust == sorted(robust, reverse=True)
    assert not any(row.trusted for row in rows)


def test_the_documented_table_is_what_the_records_say() -> None:
    documented = (RESULTS.parent / "docs" / "studies.md").read_text(encoding="utf-8").splitlines()
    lines = table([RESULTS.parent / study for study in TABULATED])
    start = documented.index(lines[0])
    assert documented[start : start + len(lines)] == lines
    assert len(lines) == 22
