"""The deployment example in an environment of its own, in which neither torch nor squint is installed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from PIL import Image

from .onnx_models import digits, pair

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from squint.export.onnx import export_onnx, predict, read_images

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"
NEEDED = ("onnxruntime", "numpy", "pillow")
"""What the example's first line asks for."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a fresh environment with only what the example needs.

    Its packages are links to those of this environment: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("clean") / "env"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in NEEDED:
        found = importlib.metadata.distribution(name)
        assert found.files is not None
        # Scripts lie outside of the folder of packages.
        tops = {file.parts[0] for file in found.files if file.parts[0] != ".."}
        for top in tops:
            (packages / top).symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin" / "python"


def _run(python: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def test_the_environment_has_what_the_example_needs_and_nothing_else(python: Path, tmp_path: Path) -> None:
    for module in ("torch", "squint", "onnx", "scipy"):
        done = _run(python, "-c", f"import {module}", cwd=tmp_path)
        assert done.returncode == 1
        assert f"No module named '{module}'" in done.stderr
    where = _run(python, "-c", "import sys; print(sys.prefix)", cwd=tmp_path).stdout.strip()
    assert Path(where) == python.parents[1] != Path(sys.prefix)


@pytest.mark.parametrize("detector", [True, False])
def test_the_example_predicts_like_squint(python: Path, detector: bool, tmp_path: Path) -> None:
    x, model = digits()[2], tmp_path / "m.onnx"
    names = [f"digit {k}" for k in range(10)]
    clean = x[100:119] if detector else None
    # The smallest calibration, and a rate that flags about one image in two.
    export_onnx(pair(), model, images=x[:64], class_names=names, detector_images=clean, false_alarm_rate=0.5)
    paths = [tmp_path / f"{k}.png" for k in range(12)]
    for path, image in zip(paths, x, strict=False):
        Image.fromarray(image[0].mul(255).round().byte().numpy()).save(path)
    done = _run(python, EXAMPLE, model, *paths, cwd=tmp_path)
    assert done.stderr == ""
    found = predict(model, read_images(paths, 1))
    assert {p.flagged for p in found} == ({True, False} if detector else {None})
    assert done.stdout.splitlines() == [
        f"{path}: {p.name} {p.probability:.1%}{' FLAGGED' if p.flagged else ''}"
        for path, p in zip(paths, found, strict=True)
    ]


def test_the_example_draws_fresh_noise_in_every_process(python: Path, tmp_path: Path) -> None:
    x, model, path = digits()[2], tmp_path / "m.onnx", tmp_path / "0.png"
    export_onnx(pair(), model, "sample", images=x[:16])
    # Half-way between two digits, where the noise moves the probability most.
    Image.fromarray((x[0, 0] + x[1, 0]).mul(127.5).round().byte().numpy()).save(path)
    printed = {_run(python, EXAMPLE, model, *[path] * 4, cwd=tmp_path).stdout for _ in range(2)}
    assert len(printed) == 2
    assert len({line for lines in printed for line in lines.splitlines()}) > 2


def test_the_example_is_short_and_says_what_it_needs() -> None:
    _, description, code = EXAMPLE.read_text().split('"""')
    assert all(name in description for name in NEEDED)
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
