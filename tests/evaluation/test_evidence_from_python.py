"""`evaluate` with a folder leaves the worst images where `squint verify` and `squint break` take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import squint
from squint import InputError
from squint.cli import main
from squint.evaluation import RobustnessReport, evaluate, ladder_report
from squint.evaluation.budgets import PRESETS, tiny
from squint.evaluation.evidence import break_with
from squint.evaluation.evidence_files import load_evidence
from squint.quantize.layers import QuantizedConv2d

WEIGHTS = Path(__file__).parents[1] / "attacks" / "weights" / "stochastic.safetensors"
N = 8


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    monkeypatch.setitem(PRESETS, "quick", tiny(3))
    monkeypatch.setattr(ladder_report, "preflight", lambda *_, **__: [])
    test = squint.data.load("digits").test
    return test.images[:N].float() / 255, test.labels[:N]


def climbed(data: tuple[Tensor, Tensor], folder: Path | str | None, **more: Any) -> RobustnessReport:
    radii = ("32/255", "8/255")
    return evaluate(squint.load(WEIGHTS), data, radii, "quick", folder=folder, resubmissions=64, **more)


def test_the_worst_images_at_the_first_radius_are_kept(data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    report = climbed(data, str(tmp_path), system="noisy")
    found = load_evidence(tmp_path / "evidence" / "noisy.npz")
    assert found.eps == pytest.approx(32 / 255)
    assert found.system == "noisy"
    assert found.index.tolist() == list(range(N))
    assert torch.equal(found.labels, data[1])
    distance = (found.images.float() / 255 - report.outcomes[0].adversarial).abs().max()
    assert distance < 1 / 255
    assert found.correct.mean() == pytest.approx(report.records[0].details["uint8_accuracy"])
    assert set(found.rung.tolist()) <= {-1, 0, 1, 2}
    assert [path.name for path in (tmp_path / "evidence").iterdir()] == ["noisy.npz"]


def test_the_commands_take_it(
    data: tuple[Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    climbed(data, tmp_path)
    squint.save(squint.load(WEIGHTS), tmp_path / "weights" / "model.safetensors")
    evidence = tmp_path / "evidence" / "model.npz"
    assert main(["verify", str(evidence), "--dataset", "digits", "--seed", "3"]) == 0
    assert "model at eps 32/255" in (out := capsys.readouterr().out)
    assert "agrees" in out
    theirs = tmp_path / "theirs.npz"
    np.savez(theirs, images=data[0].numpy(), index=np.arange(N), labels=data[1].numpy())
    words = ["--eps", "32/255", "--record", str(evidence), "--dataset", "digits"]
    assert main(["break", str(tmp_path / "weights" / "model.safetensors"), str(theirs), *words]) == 0
    assert "the record stands" in capsys.readouterr().out


def test_nothing_is_kept_without_a_folder_or_outside_of_it(
    data: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    climbed(data, None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"system is '\.\./x'; allowed with a folder"):
        climbed(data, tmp_path / "a", system="../x")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_quantized_once_for_all_resubmissions(
    data: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer = squint.load(WEIGHTS), QuantizedConv2d
    images = (data[0] * 255).round().to(torch.uint8).numpy()
    np.savez(tmp_path / "own.npz", images=images, index=np.arange(N), labels=data[1].numpy())
    calls, original = [], layer.quantized_weight

    def counted(self: QuantizedConv2d, draws: int = 1) -> Tensor:
        if self.weight_quantizer is not None:
            calls.append(draws)
        return original(self, draws)

    monkeypatch.setattr(layer, "quantized_weight", counted)
    for batch_size in (N, 2):
        break_with(model, data, tmp_path / "own.npz", eps="8/255", batch_size=batch_size)
    layers = sum(isinstance(part, layer) for part in model.modules())
    assert layers > 0
    # Not at all where the copy runs on integer codes.
    assert len(calls) <= 2 * layers
