"""`squint run --seeds`: which seeds a study is run over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import squint.cli
from squint._checks import InputError
from squint.cli import main
from squint.commands.seeds import chosen_seeds


def test_seeds_that_are_chosen() -> None:
    assert chosen_seeds("run", "digits", [], ()) == ()
    assert chosen_seeds("run", "digits", ["--seeds", "4"], (4,)) == (4,)
    assert chosen_seeds("run", "ablation-digits", [], ()) == (0, 1, 2)
    assert chosen_seeds("run", "ablation-digits", ["--seeds", "1"], (1,)) == (1,)
    assert chosen_seeds("run", "ablation-digits", ["--seed=4"], ()) == ()
    assert chosen_seeds("train", "ablation-digits", [], ()) == ()
    assert chosen_seeds("run", "digits", ["--only", "noisy"], (), only=["noisy"]) == ()
    for recipe, seeds in (("ablation-digits", ()), ("digits", (1, 2))):
        with pytest.raises(InputError, match="--only belongs to one seed"):
            chosen_seeds("run", recipe, ["--only", "noisy"], seeds, only=["noisy"])
    with pytest.raises(InputError, match="exclude each other"):
        chosen_seeds("run", "digits", ["--seed", "4", "--seeds", "1"], (1,))
    with pytest.raises(InputError, match="belongs to squint run"):
        chosen_seeds("train", "digits", ["--seeds", "1"], (1,))


def test_run_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Sequence[int], Path, Any]] = []

    def seeds(_: Any, seeds: Sequence[int], folder: Path, **options: Any) -> dict[str, Any]:
        asked.append((seeds, folder, options["overwrite"]))
        return {"reference": "a", "seeds": list(seeds), "margin": 0.02, "verdicts": [], "systems": [
            {"system": "a", "title": "A", "tier": "A", "attack": "clean", "eps": "0", "accuracy": 0.5}
        ]}  # fmt: skip

    monkeypatch.setattr(squint.cli, "run_seeds", seeds)
    assert (
        main(["run", "digits", "--seeds", "3", "4", "--output", str(tmp_path), "--overwrite", "--quiet"]) == 0
    )
    out = capsys.readouterr().out
    assert "Seeds 3, 4; reference: A" in out
    assert f"verdicts: {tmp_path / 'verdicts.json'}" in out
    assert main(["run", "ablation-digits", "--output", str(tmp_path), "--quiet"]) == 0
    assert asked == [((3, 4), tmp_path, True), ((0, 1, 2), tmp_path, False)]
