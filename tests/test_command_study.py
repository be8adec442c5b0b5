"""`squint run study` and `squint run hypothesis`: which recipe they mean, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import squint.cli
from squint.cli import main


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path]]:
    """What the command line asked to be run; nothing is."""
    found: list[tuple[Any, Path]] = []

    def run(recipe: Any, output: Path, **_: Any) -> dict[str, Any]:
        found.append((recipe, output))
        results: dict[str, Any] = {"format_version": 1, "headline_eps": "5/255", "headline_attack": "pgd"}
        if recipe.kind == "hypothesis":
            comparison = {
                "collection": "both", "title": "Both", "against": "alike", "against_title": "Alike",
                "role": "equally quantized", "with": "the best collection", "attack": "pgd", "eps": "5/255",
                "verdict": "helps", "mean": 0.05, "ci95": [0.03, 0.07], "images": 400, "seeds": 1,
            }  # fmt: skip
            results["hypothesis"] = {
                "attack": "pgd", "eps": "5/255", "margin": 0.02, "comparisons": [comparison],
                "conclusions": [{"collection": "both", "words": "Difference adds."}],
            }  # fmt: skip
        return results

    monkeypatch.setattr(squint.cli, "run_study", run)
    return found


@pytest.mark.parametrize("dataset", ["digits", "fashion-mnist", "cifar10"])
def test_a_study_is_chosen_by_its_data_set(asked: list[tuple[Any, Path]], dataset: str) -> None:
    assert main(["run", "study", "--dataset", dataset, "--train.epochs", "1", "--quiet"]) == 0
    ((recipe, output),) = asked
    assert (recipe.name, recipe.dataset, recipe.train.epochs) == (f"study-{dataset}", dataset, 1)
    assert output == Path(f"runs/study-{dataset}")


def test_a_hypothesis_ends_in_words(
    asked: list[tuple[Any, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "hypothesis", "--quiet"]) == 0
    assert asked[0][0].name == "hypothesis-digits"
    out = capsys.readouterr().out
    assert "The hypothesis, under pgd at eps 5/255" in out
    assert "Difference adds." in out


def test_a_data_set_without_a_study_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "study", "--dataset", "cifra10"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "squint: --dataset of study is 'cifra10'; allowed: cifar10, digits, fashion-mnist"
    )
    assert error.count("\n") == 1


def test_help_tells_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert "squint run study --dataset cifar10" in out
    assert "squint run hypothesis --dataset digits" in out
