"""The shipped file in use: predictions, images, and attacks on it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from squint import InputError

from .onnx_models import digits, pair

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from squint.export.onnx import (  # noqa: E402
    OnnxModel,
    attack_shipped,
    export_onnx,
    predict,
    read_images,
)

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a deterministic graph with names and a detector."""
    path = tmp_path_factory.mktemp("shipped") / "m.onnx"
    x = digits()[2]
    return export_onnx(pair(), path, images=x[:64], detector_images=x[100:140], class_names=NAMES).path


def _files(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{k}.png" for k in range(count)]
    for path, image in zip(paths, digits()[2], strict=False):
        Image.fromarray(image[0].mul(255).round().byte().numpy()).save(path)
    return paths


def test_predictions_name_the_class_its_probability_and_the_flag(shipped: Path, tmp_path: Path) -> None:
    x = read_images(_files(tmp_path, 5), 1)
    assert torch.allclose(x, digits()[2][:5], atol=0.5 / 255)
    model = OnnxModel(shipped)
    found = predict(model, x, batch_size=2)
    expected, scores = (torch.from_numpy(output) for output in model.run(x))
    threshold = model.card["detector"]["threshold"]
    for prediction, row, score in zip(found, expected, scores, strict=True):
        assert prediction.label == int(row.argmax())
        assert prediction.name == NAMES[prediction.label]
        assert prediction.probability == pytest.approx(float(row.exp().max()), rel=1e-5)
        assert prediction.flagged is bool(score > threshold)
    assert predict(export_onnx(pair(), tmp_path / "plain.onnx").path, x)[0].flagged is None


def test_images_that_do_not_fit_are_refused(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((9, 8), dtype=np.uint8)).save(tmp_path / "tall.png")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_images([tmp_path / "text.png"], 1)
    with pytest.raises(InputError, match="use one size"):
        read_images([*_files(tmp_path, 1), tmp_path / "tall.png"], 1)
    with pytest.raises(InputError, match="one file or more"):
        read_images([], 1)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png has pixels of kind 'I;16'; allowed: 8 bits"):
        read_images([tmp_path / "deep.png"], 1)
    with pytest.raises(InputError, match=r"the model takes \(1, 8, 8\)"):
        predict(shipped, read_images([tmp_path / "tall.png"], 1))


def test_files_that_are_no_model_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01")
    with pytest.raises(InputError, match="cannot run the model"):
        OnnxModel(tmp_path / "bad.onnx")
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [info("x", 1, ["n"])], [info("y", 1, ["n"])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(InputError, match="no model card"):
        OnnxModel(model.SerializeToString())


def test_a_name_that_is_no_text_is_refused_without_a_word_of_the_runtimes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Odd", ["x"], ["y"], name="name")
    graph = onnx.helper.make_graph([node], "g", [info("x", 1, ["n"])], [info("y", 1, ["n"])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    content = model.SerializeToString()
    for damaged in (content, content.replace(b"Odd", b"O\xffd")):
        with pytest.raises(InputError, match=r"^ONNX Runtime cannot run the model"):
            OnnxModel(damaged)
    assert capfd.readouterr() == ("", "")


def test_attacks_on_the_runtime_go_beyond_noise(shipped: Path) -> None:
    _, _, x, y = digits()
    x, y = x[:40], y[:40]
    generator = torch.Generator().manual_seed(0)
    found = attack_shipped(
        OnnxModel(shipped), pair(), x, y, eps=40 / 255, steps=10, queries=60, generator=generator
    )
    assert (found.eps, found.n, found.resubmissions) == ("40/255", 40, 1)
    noise = torch.rand(x.shape, generator=generator).sub(0.5).sign().mul(40 / 255)
    noisy = OnnxModel(shipped)((x + noise).clamp(0, 1)).argmax(1).eq(y).double().mean()
    assert found.worst_accuracy <= min(found.transfer_accuracy, found.square_accuracy)
    assert found.worst_accuracy < float(noisy) - 0.1
    assert found.clean_accuracy == OnnxModel(shipped)(x).argmax(1).eq(y).double().mean()


def test_attacks_on_a_stochastic_graph_score_resubmissions(tmp_path: Path) -> None:
    _, _, x, y = digits()
    model = OnnxModel(export_onnx(pair(), tmp_path / "m.onnx", "sample").path)
    generator = torch.Generator().manual_seed(0)
    found = attack_shipped(
        model,
        pair(),
        x[:10],
        y[:10],
        eps=0.1,
        steps=2,
        queries=5,
        eot=2,
        resubmissions=5,
        generator=generator,
    )
    assert found.resubmissions == 5
    assert (found.clean_accuracy * 50) == pytest.approx(round(found.clean_accuracy * 50))


def test_the_runtime_missing_is_named(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="onnxruntime is not installed"):
        OnnxModel(shipped)
