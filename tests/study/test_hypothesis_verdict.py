"""What is concluded from accuracies that were made up to be known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from squint._checks import InputError
from squint.study.hypothesis import Plan, plan_of
from squint.study.hypothesis_verdict import judge, print_judgement
from squint.study.pairs import outcomes_of, verdict_of
from tests.study.collections import hypothesis

N = 4000
NAMES = ("alike", "bits", "member-1", "longer-1", "member-2", "member-3", "longer-2")


def made_up(folder: Path, accuracies: dict[str, float]) -> tuple[Path, dict[str, Any]]:
    """Return a run in which the same images fall first: pairs differ by their accuracies alone."""
    (folder / "examples").mkdir(parents=True)
    records, order = [], np.random.default_rng(0).permutation(N)
    for name in NAMES:
        correct = (order < accuracies.get(name, 0.5) * N).astype(np.float64)
        np.savez_compressed(
            folder / "examples" / f"{name}.npz",
            allow_pickle=False,
            settings=np.array(["pgd 24/255"]),
            correct=correct[None],
            clean_correct=np.ones(N),
        )
        records.append(
            {"system": name, "attack": "pgd", "eps": "24/255", "n": N, "clean_accuracy": 1.0,
             "robust_accuracy": float(correct.mean())}
        )  # fmt: skip
    return folder, {"seed": 0, "records": records}


def plan() -> Plan:
    found = plan_of(hypothesis())
    assert found is not None
    return found


def conclusions(tmp_path: Path, **accuracies: float) -> dict[str, str]:
    by_name = {name.replace("_", "-"): value for name, value in accuracies.items()}
    found = judge(plan(), [made_up(tmp_path / "run", by_name)], "pgd", "24/255")
    return {each["collection"]: each["words"] for each in found["conclusions"]}


def test_difference_adds_to_averaging(tmp_path: Path) -> None:
    words = conclusions(tmp_path, bits=0.7, alike=0.6, member_3=0.55, longer_2=0.56)
    assert words["bits"].endswith(
        "The collection beats its best member, and difference adds to what averaging gives."
    )
    assert "against its best member alone (4-bit weights, start 2) it has +15.0 points" in words["bits"]
    assert "better by more than 2 points" in words["bits"]
    assert words["alike"].endswith("Averaging networks that are quantized alike helps by itself.")


def test_averaging_is_why(tmp_path: Path) -> None:
    words = conclusions(tmp_path, bits=0.7, alike=0.7)
    assert words["bits"].endswith("as equally quantized members do: averaging, not difference, is why.")
    words = conclusions(tmp_path / "more", bits=0.7, alike=0.8)
    assert words["bits"].endswith(
        "equally quantized members do better still: averaging, not difference, is why."
    )


def test_a_collection_that_its_members_match_does_not_beat_them(tmp_path: Path) -> None:
    words = conclusions(tmp_path, bits=0.7, alike=0.6, member_3=0.7)
    assert words["bits"].endswith("The collection does not beat its best member.")


def test_a_member_that_had_as_much_training_is_told_apart(tmp_path: Path) -> None:
    words = conclusions(tmp_path, bits=0.7, alike=0.6, longer_2=0.7)
    assert words["bits"].endswith("beats its best member, but not one trained as long as all of them.")


def test_averaging_that_does_not_help_is_said(tmp_path: Path) -> None:
    words = conclusions(tmp_path, longer_1=0.6)
    assert words["alike"].endswith("Averaging networks that are quantized alike does not help.")


def test_few_images_leave_it_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.study.test_hypothesis_verdict.N", 20)
    words = conclusions(tmp_path, bits=0.55)
    assert words["bits"].endswith("Undecided whether the collection beats its best member.")
    assert words["alike"].endswith("Undecided whether averaging helps.")


def test_comparisons_are_those_of_the_paired_images(tmp_path: Path) -> None:
    run = made_up(tmp_path / "run", {"bits": 0.62, "member-1": 0.6, "member-3": 0.55})
    found = judge(plan(), [run], "pgd", "24/255", 0.03)
    (entry,) = (c for c in found["comparisons"] if c["role"] == "best member")
    expected = verdict_of([run], "bits", "member-1", "pgd", "24/255", 0.03).to_json()
    assert {key: entry[key] for key in expected} == expected
    assert (entry["against"], entry["title"]) == ("member-1", "Two bit widths")
    assert found["margin"] == 0.03


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    folder, results = made_up(tmp_path / "run", {})
    results["records"] = [r for r in results["records"] if r["system"] != "longer-2"]
    with pytest.raises(InputError, match="hold no pgd at eps 24/255 on longer-2"):
        judge(plan(), [(folder, results)], "pgd", "24/255")


def test_the_judgement_is_printed(tmp_path: Path) -> None:
    found = judge(plan(), [made_up(tmp_path / "run", {"bits": 0.7})], "pgd", "24/255")
    out = io.StringIO()
    print_judgement(found, Console(file=out, width=120))
    text = " ".join(out.getvalue().split())
    for part in ("The hypothesis, under pgd at eps 24/255", "Two bit widths", "helps", "equivalent", "+20.0"):
        assert part in text
    out = io.StringIO()
    print_judgement(None, Console(file=out))
    assert out.getvalue() == ""


def test_a_judgement_of_somebodys_file_steers_no_terminal(tmp_path: Path) -> None:
    found = judge(plan(), [made_up(tmp_path / "run", {"bits": 0.7})], "pgd", "24/255")
    entry = found["comparisons"][0]
    entry |= {"title": "[red]\x1b[2J", "verdict": "[bold]helps[/nothing]"}
    out = io.StringIO()
    print_judgement(found, Console(file=out, width=160))
    assert "\x1b" not in out.getvalue()
    assert "[red]" in out.getvalue()
    assert "[bold]helps[/nothing]" in out.getvalue()
    entry.pop("title")
    with pytest.raises(InputError, match=r"^hypothesis: comparisons\[0\] has no 'title'"):
        print_judgement(found, Console(file=out))


def test_outcomes_of_the_ladder_lie_beside_those_of_the_attacks(tmp_path: Path) -> None:
    folder, _ = made_up(tmp_path / "run", {})
    np.savez_compressed(
        folder / "examples" / "bits.npz",
        allow_pickle=False,
        settings=np.array(["pgd 24/255"]),
        correct=np.ones((1, 5)),
        clean_correct=np.ones(5),
        ladder_settings=np.array(["ladder 24/255"]),
        ladder_correct=np.array([[1.0, 0.0, 0.5]]),
    )
    ladder = outcomes_of(folder, "bits", "ladder", "24/255")
    assert ladder is not None
    assert ladder.tolist() == [1.0, 0.0, 0.5]
    assert outcomes_of(folder, "bits", "ladder", "8/255") is None
