"""A run knows its images: a resumed one, and whatever is done to it later, refuses others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from squint.cli import main
from tests.study.finished import refused
from tests.study.tiny import PLAIN


def pictures(root: Path) -> Path:
    """Two classes of small grey images, each of its own shade."""
    for label, name in enumerate("ab"):
        (root / "own" / name).mkdir(parents=True)
        for k in range(30):
            Image.new("L", (8, 8), 4 * k + label).save(root / "own" / name / f"{k:02}.png")
    return root


def recipe(folder: Path) -> Path:
    plain = PLAIN | {"dataset": "folder:own", "curve": [], "systems": {"noisy": PLAIN["systems"]["noisy"]}}
    plain["train"] = {**PLAIN["train"], "batch_size": 8, "epochs": 1}
    plain["attack"] = {"images": 4, "resubmissions": 2, "batch_size": 4}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def test_other_images_are_refused_wherever_a_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, words = pictures(tmp_path / "data"), [str(recipe(tmp_path)), "--quiet", "--output"]
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert main(["train", *words, str(run), "--data-dir", str(data)]) == 0
    assert json.loads((run / "run.json").read_text())["data"].keys() == {"training", "validation", "test"}
    # The same images elsewhere are the same images, and those that are put back.
    shutil.copytree(data, moved)
    before = (run / "config.yaml").read_bytes()
    shutil.copy(data / "own" / "a" / "00.png", data / "own" / "b" / "00.png")
    for command in (["train", *words, str(run)], ["run", *words, str(run)]):
        line = refused(capsys, *command, "--data-dir", data, "--resume")
        assert f"{run} was begun with other " in line
        assert "images or labels than these: give it those that it was begun with (--data-dir" in line
    assert (run / "config.yaml").read_bytes() == before
    for picture in (data / "own" / "a").iterdir():
        Image.new("L", (8, 8), 200).save(picture)
    for verb in ("attack", "detect", "profile"):
        assert "its files have changed since; put those back" in refused(capsys, verb, run)
    assert main(["run", *words, str(run), "--data-dir", str(moved), "--resume"]) == 0
    assert main(["attack", str(run), "--images", "2", "--resubmissions", "2", "--quiet"]) == 0
    assert sorted(path.name for path in run.glob("*.json")) == ["results.json", "run.json"]
    # A run from before this was kept goes on with any.
    about = json.loads((run / "run.json").read_text())
    about.pop("data")
    (run / "run.json").write_text(json.dumps(about))
    assert main(["run", *words, str(run), "--data-dir", str(data), "--resume"]) == 0
