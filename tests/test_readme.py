"""The README's example runs as it stands, and the demo that it shows is the recorded one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), scope)
    printed = capsys.readouterr().out
    accuracy = float(re.search(r"validation accuracy ([\d.]+)%", printed)[1])  # type: ignore[index]
    assert accuracy > 80
    assert "eps 32/255" in printed
    assert "UNTRUSTED" in printed
    assert (tmp_path / "digits.safetensors").exists()


def test_the_demo_shown_is_the_recorded_one() -> None:
    text = README.read_text().replace("\N{NO-BREAK SPACE}", " ")
    recorded = json.loads((README.parent / "results" / "digits" / "results.json").read_text())
    figures = {}
    for record in recorded["records"]:
        if record["eps"] == "32/255":
            accuracies = (record["clean_accuracy"], record["robust_accuracy"], *record["ci95"])
            figures[record["system"]] = tuple(f"{100 * value:.1f}" for value in accuracies)
    rows = re.findall(r" A +([\d.]+) +([\d.]+) \[([\d.]+), ([\d.]+)\]", text)
    assert sorted(rows) == sorted(figures.values())
    clean, robust, low, high = figures["stochastic-information"]
    (sentence,) = re.findall(
        r"Stochastic ensemble with information term \(tier A\) classifies .*?UNTRUSTED", text, re.S
    )
    for shown in (f"{robust} % of 500", f"interval {low} to {high} %", f"{clean} % without attack"):
        assert shown in " ".join(sentence.split())
