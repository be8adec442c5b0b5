"""What the figures say: their words are checked against the numbers that went in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squint.report.curves import accuracy_figure, losses_figure, plane_figure
from squint.report.images import SHOWN, examples_figure, votes_of
from squint.report.results import parse_results
from squint.report.run import Epoch, Examples, read_run

Results = dict[str, Any]
MakeRecord = Callable[..., dict[str, Any]]


def test_accuracy_figure_tells_every_point_in_words(results: Results) -> None:
    figure = accuracy_figure(parse_results(results))
    assert figure is not None
    assert (
        "squint with curvature penalty: 64.4 % clean, 54.0 % at 2/255, 38.4 % at 5/255, 22.8 %" in figure.alt
    )
    assert "PGD (seed protocol) over 1,000 images" in figure.caption
    assert "ladder" not in figure.alt + figure.caption + figure.title


def test_accuracy_figure_keeps_to_one_norm_and_says_that_n_differs(
    results: Results, record: MakeRecord
) -> None:
    results["records"] = [
        record("lsq", 2),
        record("lsq", 8, n=200),
        record("lsq", 128, norm="l2"),
        record("lsq", 3, attack="square"),
    ]
    figure = accuracy_figure(parse_results(results))
    assert figure is not None
    assert "200 to 1,000 images" in figure.caption
    assert "8/255" in figure.alt
    assert "128/255" not in figure.alt
    assert "3/255" not in figure.alt


def test_no_record_no_figure(results: Results) -> None:
    parsed = parse_results(results | {"records": [], "plane": []})
    assert accuracy_figure(parsed) is None
    assert losses_figure(parsed, {}) is None
    assert plane_figure(parsed) is None


def test_losses_leave_out_zero_terms_and_survive_divergence(results: Results) -> None:
    history = [
        Epoch(1, {"total": 2.0, "redundancy": 0.0, "agreement": -0.01}, None),
        Epoch(2, {"total": float("nan"), "redundancy": 0.0, "agreement": float("inf")}, 0.5),
        Epoch(3, {"total": 1.5, "redundancy": 0.0, "agreement": 0.25}, 0.61),
    ]
    figure = losses_figure(parse_results(results), {"lsq": history, "unknown system": history[:1]})
    assert figure is not None
    assert "(LSQ) after epoch 3: total 1.5, agreement 0.25, validation accuracy 61.0 %" in figure.alt
    assert "unknown system after epoch 1" in figure.alt
    assert "redundancy" not in figure.alt


def test_plane_subtracts_the_baseline_and_names_the_radii(results: Results) -> None:
    point = {"system": "squint_a", "threat": "transfer", "eps": "5/255", "information": 1.25,
             "baseline": 0.05, "accuracy": 0.5, "n": 500}  # fmt: skip
    clean = point | {"threat": "clean", "eps": "0", "information": 1.5, "accuracy": 0.7, "n": 400}
    figure = plane_figure(parse_results(results | {"plane": [point, clean]}))
    assert figure is not None
    assert "transfer, eps 5/255: 1.200 nats, 50.0 %" in figure.alt
    assert "(0, 5/255)" in figure.caption
    assert "n = 400, 500" in figure.caption


def examples_of(adversarial: int, channels: int = 3, members: int = 2, n: int = 9) -> Examples:
    clean = np.full((n, channels, 8, 8), 100, np.uint8)
    return Examples(
        index=np.arange(n),
        label=np.full(n, 1),
        clean=clean,
        adversarial=np.full_like(clean, adversarial),
        clean_votes=np.full((n, members), 1),
        adversarial_votes=np.tile(np.arange(members), (n, 1)),
        error_share=np.linspace(0, 1, n),
    )


@pytest.mark.parametrize(
    ("adversarial", "largest", "gain"), [(105, 5, 25), (95, 5, 25), (100, 0, 1), (255, 155, 1)]
)
def test_difference_is_amplified_to_full_range(
    results: Results, adversarial: int, largest: int, gain: int
) -> None:
    figure = examples_figure(parse_results(results), "lsq", examples_of(adversarial))
    assert figure is not None
    assert f"at most {largest}/255, drawn {gain} times" in figure.caption
    assert f"{SHOWN} of {2 * SHOWN} votes are wrong" in figure.alt


@pytest.mark.parametrize(("channels", "members"), [(1, 1), (2, 12), (3, 8)])
def test_any_number_of_channels_and_members_is_drawn(results: Results, channels: int, members: int) -> None:
    figure = examples_figure(parse_results(results), "lsq", examples_of(104, channels, members, n=2))
    assert figure is not None
    assert figure.svg.startswith(b"<?xml")


def test_votes_name_their_classes_and_errors() -> None:
    votes = votes_of(examples_of(105, members=3), ["cat", "dog"])
    assert len(votes) == SHOWN
    assert votes[0].label == "dog"
    assert votes[0].members == (
        ("dog", True, "cat", False),
        ("dog", True, "dog", True),
        ("dog", True, "class 2", False),
    )


def test_no_examples_no_figure(results: Results) -> None:
    assert examples_figure(parse_results(results), "lsq", examples_of(105, n=0)) is None


def test_titles_that_matplotlib_would_read_as_markup(
    results: Results, build: Callable[..., Path], tmp_path: Path
) -> None:
    for system, title in zip(results["systems"], ["_hidden", "$x", "a\\b_{", "<b>", "$\\bad$"], strict=True):
        system["title"] = title
    run = read_run(build(tmp_path, results))
    for figure in (accuracy_figure(run.results), losses_figure(run.results, run.epochs)):
        assert figure is not None
        assert figure.svg


def test_accuracy_figure_follows_the_attack_with_most_radii_when_the_headline_has_one(
    results: Results, record: MakeRecord
) -> None:
    results["headline_attack"] = "ladder"
    results["records"] = [
        record("lsq", 8, attack="ladder", preset="standard"),
        record("lsq", 2),
        record("lsq", 5),
    ]
    figure = accuracy_figure(parse_results(results))
    assert figure is not None
    assert "at 2/255" in figure.alt
    assert "at 8/255" not in figure.alt
