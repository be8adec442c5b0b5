"""What an export refuses: differences that the gate finds, and input that cannot be exported."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import squint
from squint import InputError, InputTypeError
from squint.baselines import VotingEnsemble

from .onnx_models import digits, pair

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from squint.export.onnx import export_onnx
from squint.export.parity import check_parity


def _quantizers(ens: squint.Ensemble) -> list[squint.StochasticQuantizer]:
    return [m for m in ens.modules() if isinstance(m, squint.StochasticQuantizer) and float(m.width) > 0]


def test_the_gate_finds_noise_of_another_width(tmp_path: Path) -> None:
    ens = pair()
    report = export_onnx(ens, tmp_path / "m.onnx", "sample")
    other = copy.deepcopy(ens)
    for quantizer in _quantizers(other):
        quantizer.width.fill_(0.25)
    with pytest.raises(InputError, match=r"over draws is .* standard errors off"):
        check_parity(other, report.path.read_bytes(), digits()[2][:32], rounding="sample")


def test_the_gate_refuses_other_predictions_and_force_writes_them(tmp_path: Path) -> None:
    x = digits()[2][:64]
    ens = copy.deepcopy(pair())
    squint.set_rounding(ens, "nearest")
    report = export_onnx(ens, tmp_path / "m.onnx")
    content = report.path.read_bytes()
    with torch.no_grad():
        for member in ens.members:
            member.network.classifier.bias[3] += 50  # type: ignore[union-attr, index, operator]
    with pytest.raises(InputError, match="predictions differ with graph optimizations on"):
        check_parity(ens, content, x, rounding="nearest")
    forced = check_parity(ens, content, x, rounding="nearest", force=True)
    assert forced.comparisons[0].disagreement is not None
    assert forced.comparisons[0].disagreement > 0.5


def test_the_ensemble_is_left_alone(tmp_path: Path) -> None:
    ens = copy.deepcopy(pair()).train()
    squint.seed(1)
    stream = squint._random.default_generator().get_state()
    before = {name: value.clone() for name, value in ens.state_dict().items()}
    export_onnx(ens, tmp_path / "m.onnx", images=digits()[2][:8], max_disagreement=0.2)
    assert ens.training
    assert torch.equal(stream, squint._random.default_generator().get_state())
    assert all(torch.equal(before[name], value) for name, value in ens.state_dict().items())
    assert {q.rounding for q in _quantizers(ens)} == {"sample"}


class _Unknown(nn.Module):
    pass


def test_what_cannot_be_exported_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ens = pair()
    net = squint.quantize(squint.models.small_cnn())
    noisy = squint.quantize(squint.models.small_cnn(), weight_width=1.0)
    squint.calibrate(noisy, torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match=r"call squint.calibrate"):
        export_onnx(squint.Ensemble([net]), path)
    with pytest.raises(InputError, match="export with rounding='nearest'"):
        export_onnx(squint.Ensemble([noisy]), path, "sample")
    with pytest.raises(InputError, match=r"members.0 is a _Unknown, which cannot be exported"):
        export_onnx(squint.Ensemble([_Unknown()]), path)
    with pytest.raises(InputError, match=r"members.0.1 \(Softmax\) cannot be exported"):
        export_onnx(squint.Ensemble([nn.Sequential(nn.Linear(2, 2), nn.Softmax(1))]), path)
    with pytest.raises(InputError, match=r"opset is 21, too old for 2-bit weights .* use opset 25"):
        export_onnx(ens, path, opset=21)
    with pytest.raises(InputError, match="draws noise up to opset 21"):
        export_onnx(ens, path, "sample", opset=25)
    with pytest.raises(InputError, match=r"rounding is 'neares'.*did you mean 'nearest'"):
        export_onnx(ens, path, "neares")
    with pytest.raises(InputError, match="images has 3; a stochastic graph is compared over 8 or more"):
        export_onnx(ens, path, "sample", images=digits()[2][:3])
    with pytest.raises(InputError, match="labels were given without images"):
        export_onnx(ens, path, labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="opset is 17, too old; use opset 18 or later"):
        export_onnx(squint.Ensemble([squint.models.small_cnn()]), path, opset=17)
    with pytest.raises(InputError, match=r"opset is 1000; allowed: a whole number"):
        export_onnx(ens, path, opset=1000)
    with pytest.raises(InputError, match="deploys its members' vote"):
        export_onnx(VotingEnsemble(list(ens.members)), path)
    with pytest.raises(InputTypeError, match=r"needs a squint.Ensemble"):
        export_onnx(net, path)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package} is not .* pip install 'squint-nn\[onnx\]'"):
        export_onnx(pair(), tmp_path / "m.onnx")


def test_an_opset_that_the_runtime_does_not_run_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(*_: object, **__: object) -> None:
        raise InputError("Could not find an implementation for QuantizeLinear")

    def build(*_: object, **__: object) -> None:
        raise AssertionError("built a graph")

    monkeypatch.setattr("squint.export.onnx.prepared.open_session", old)
    monkeypatch.setattr("squint.export.onnx.build.build_model", build)
    with pytest.raises(InputError, match=r"ONNX Runtime .* cannot run with 2-bit weights; update it"):
        export_onnx(pair(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"opset is 26, .* cannot run with 2-bit weights; use opset 25"):
        export_onnx(pair(), tmp_path / "m.onnx", opset=26)
