"""`squint export`, `predict` and `attack MODEL.onnx`, through `main`, on one tiny run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import squint
import squint.study.run
from squint import data as D
from squint.commands.export import ExportOptions, export_lines, export_path
from squint.study.folder import read_results
from squint.study.keeping import held
from tests.study.finished import clean_images, done, finished, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a plain network and a noisy ensemble."""
    return finished(tmp_path_factory.mktemp("shipping") / "run")


def test_an_export_into_a_run_waits_for_no_one_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with held(run):
        line = refused(capsys, "export", run, "--system", "plain", "--force")
    assert "is in use by another squint process" in line
    assert not list(run.glob("*.onnx"))


def test_export_predict_and_attack(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = tmp_path / "noisy.onnx"
    # After two epochs many images lie between classes, where 8-bit codes turn them.
    out = done(capsys, "export", run, "--system", "noisy", "--output", model, "--images", 50, "--force")
    assert f"model: {model}" in out
    assert "checked against the ensemble on 50 test images" in out
    assert "log probabilities by at most" in out
    assert "detector: predictive_information above" in out
    assert "measured with noise, which this file leaves out" in out
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "weights" / "noisy.safetensors").read_bytes())
    out = done(capsys, "export", alone)
    assert "not checked against the ensemble" in out
    assert "no detector: only a run names images that its training has not seen" in out
    assert "no robustness record" in out
    assert (tmp_path / "alone-nearest.onnx").is_file()

    x, _ = clean_images()
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, x, strict=False):
        Image.fromarray((255 * image[0]).round().byte().numpy()).save(file)
    output = tmp_path / "predictions.json"
    lines = done(capsys, "predict", model, *files, "--output", output).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(file) for file in files]
    found = json.loads(output.read_text())
    assert [each["label"] for each in found] == squint.export.onnx.OnnxModel(model)(x[:3]).argmax(1).tolist()
    assert all(each["flagged"] is not None for each in found)
    assert all(line.endswith((", not flagged", ", FLAGGED as suspicious")) for line in lines)
    bare = done(capsys, "predict", tmp_path / "alone-nearest.onnx", files[0])
    assert bare.endswith("%), no detector\n")

    budget = ("--images", 6, "--steps", 3, "--queries", 10, "--eps", "24/255")
    out = done(capsys, "attack", model, "--transfer-from", run, *budget, "--output", output)
    assert "noisy.onnx at eps 24/255: " in out
    (figures,) = json.loads(output.read_text())
    assert figures["n"] == 6
    assert figures["worst_accuracy"] <= min(figures["transfer_accuracy"], figures["square_accuracy"])

    big = tmp_path / "big.png"
    Image.new("L", (9, 9)).save(big)
    for words, message in (
        (("predict", model), "images is empty"),
        (("predict", model, big), "images have shape (1, 9, 9); the model takes (1, 8, 8)"),
        (("predict", model, alone), "cannot be read as an image"),
        (("predict", model, tmp_path / "gone.png"), "gone.png does not exist"),
        (("predict", big, files[0]), "ONNX Runtime cannot run the model"),
        (("attack", model), "--transfer-from RUN"),
        (("attack", model, "--transfer-from", run, "--system", "plain"), "system is 'plain'; allowed for"),
        (
            ("attack", model, "--transfer-from", run / "weights" / "plain.safetensors"),
            "not exported from there",
        ),
        (("attack", model, "--transfer-from", run, "--images", 0), "images is 0"),
        (("export", run), f"{run} has the systems plain, noisy: name one with --system"),
        (("export", run, "--system", "noisy", "--opset", 9), "opset is 9, too old for 2-bit weights"),
        (("export", run, "--system", "noisy", "--false-alarm-rate", 0), "false_alarm_rate is 0"),
        (("export", run, "--system", "noisy", "--max-disagreement", 2), "max_disagreement is 2"),
        (("export", run, "--system", "noisy", "--dataset", "cifar10"), "its own, digits"),
    ):
        assert message in refused(capsys, *words), words


def test_the_card_of_a_run_has_its_recipe_and_its_record(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    exported = export_path(
        ExportOptions(run, "noisy", "sample", output=tmp_path / "m.onnx", images=20, force=True)
    )
    card = squint.export.onnx.OnnxModel(tmp_path / "m.onnx").card
    results = read_results(run)
    assert card["recipe"] == {
        "recipe": "tiny",
        "config_hash": results["config_hash"],
        "dataset": "digits",
        "seed": 0,
        "system": "noisy",
    }
    record = card["robustness"]
    assert record in results["records"]
    assert (record["system"], record["eps"], record["attack"]) == ("noisy", "24/255", "pgd")
    assert card["trusted"] is record["trusted"] is False
    assert card["robustness_rounding"] == card["rounding"] == "sample"
    assert card["class_names"] == [str(k) for k in range(10)]
    assert card["detector"]["calibration"] == 200
    lines = "\n".join(export_lines(exported))
    assert "UNTRUSTED" in lines
    assert "leaves out" not in lines
    assert "ranges of 8-bit outputs are those of 512 training images" in lines
    assert "variance" in lines


def test_an_export_that_cannot_be_is_refused_before_its_data_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def read(*_: object) -> D.Splits:
        raise AssertionError("read the data")

    monkeypatch.setattr("squint.commands.export.data_for", read)
    words = ("export", run, "--system", "noisy")
    for options, message in (
        (("--opset", 21), "opset is 21, too old for 2-bit weights (members.0.conv2.0); use opset 25"),
        (("--opset", 25, "--rounding", "sample"), "draws noise up to opset 21"),
        (("--max-disagreement", 2), "max_disagreement is 2"),
    ):
        assert message in refused(capsys, *words, *options)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'squint-nn[onnx]'" in refused(capsys, *words)


def test_the_gate_names_the_options_of_the_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = tmp_path / "m.onnx"
    words = ("export", run, "--system", "noisy", "--output", model, "--cpu", "any", "--max-disagreement", 0)
    line = refused(capsys, *words)
    assert "predictions differ with graph optimizations on; allowed: 0.0%" in line
    assert "; --max-disagreement allows more, --force writes it all the same" in line
    # The network has no residual sums.
    assert "integer-sums" not in line
    assert not model.exists()


def test_the_extra_is_named_where_it_is_missing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for words in (
        ("export", run, "--system", "noisy"),
        ("predict", "model.onnx", "image.png"),
        ("attack", "model.onnx", "--transfer-from", run),
    ):
        assert "pip install 'squint-nn[onnx]'" in refused(capsys, *words)
