"""The README's example runs as it stands."""

from __future__ import annotations

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
