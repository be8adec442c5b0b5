"""Exported graphs beside the ensembles they come from."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import squint
from squint import InputError

from .onnx_models import digits, pair, trained

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from squint.export.onnx import OnnxModel, export_onnx  # noqa: E402
from squint.export.sizes import info_table  # noqa: E402


def _optimized(path: Path, folder: Path) -> Counter[str]:
    """Return how often each operator occurs in the graph that the runtime computes."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("model", ["small_cnn", "resnet8"])
def test_deterministic_graphs_predict_the_same_in_integers(model: str, tmp_path: Path) -> None:
    ens = pair() if model == "small_cnn" else trained((3,), "resnet8")
    _, _, x, y = digits()
    # The smaller the network, the more of its predictions are near ties.
    allowed = 0.02 if model == "small_cnn" else 0.06
    report = export_onnx(
        ens, tmp_path / "m.onnx", images=x[:200], labels=y[:200], saturating=False, max_disagreement=allowed
    )
    assert report.parity is not None
    assert report.floating == report.narrowed == ()
    assert len(report.parity.comparisons) == 2
    for comparison in report.parity.comparisons:
        assert comparison.disagreement is not None
        assert comparison.disagreement <= allowed
        assert comparison.max_difference is not None
        assert comparison.accuracy == pytest.approx(report.parity.accuracy, abs=allowed)
    assert report.opset == (25 if model == "small_cnn" else 21)
    operators = _optimized(report.path, tmp_path)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in ens.modules())
    linear = sum(isinstance(m, nn.Linear) for m in ens.modules())
    assert operators["QLinearConv"] == convolutions
    assert operators["QGemm"] == linear
    assert operators["QLinearAdd"] == (3 if model == "resnet8" else 0)
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Cast"} & set(operators)
    assert len(report.integer) == convolutions + linear


def test_residual_sums_can_stay_in_floats(tmp_path: Path) -> None:
    x = digits()[2][:64]
    ens = trained((3,), "resnet8")
    twin = copy.deepcopy(ens)
    squint.set_rounding(twin, "nearest")
    wanted = twin(x).detach()
    additions = []
    for sums in (True, False):
        path = tmp_path / f"{sums}.onnx"
        export_onnx(ens, path, images=x, saturating=False, integer_sums=sums, force=True)
        additions.append(_optimized(path, tmp_path)["QLinearAdd"])
        assert float((OnnxModel(path)(x).argmax(1) == wanted.argmax(1)).float().mean()) >= 0.9
    assert additions[1] < additions[0] == 3


def test_the_only_difference_is_the_8_bit_output_in_front_of_the_mean(tmp_path: Path) -> None:
    x = digits()[2][:64]
    ens = pair()
    report = export_onnx(ens, tmp_path / "m.onnx", images=x, saturating=False)
    squint.set_rounding(twin := copy.deepcopy(ens), "nearest")
    with torch.no_grad():
        ours = twin(x)
    theirs = OnnxModel(report.path)(x)
    # The mean over 2 x 2 places of codes off by half a step each, then an 8-bit quantizer.
    assert float((ours.exp() - theirs.exp()).abs().max()) < 0.05
    assert torch.allclose(theirs.exp().sum(1), torch.ones(64), atol=1e-5)


@pytest.mark.parametrize(("model", "closer"), [("resnet8", True), ("small_cnn", False)])
def test_a_refusal_advises_sums_in_floats_where_there_are_sums(
    model: str, closer: bool, tmp_path: Path
) -> None:
    ens = trained((2,), model, activation_width=0.0)
    # Images of noise, near which classes are close: some of 2,000 predictions change.
    x = torch.rand(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="does not match the ensemble") as refusal:
        export_onnx(ens, tmp_path / "m.onnx", images=x, saturating=False, max_disagreement=0.0)
    assert ("integer_sums=False may be closer" in str(refusal.value)) == closer
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("bits", [(1, 1), (2, 1), (1, 2)])
def test_biases_count_where_the_steps_are_as_large_as_they_are(bits: tuple[int, int], tmp_path: Path) -> None:
    x = digits()[2][:256]
    net = squint.quantize(squint.models.small_cnn(10, 1, 4), *bits, 2, width=0.0)
    ens = squint.Ensemble([net]).eval()
    squint.calibrate(ens, digits()[0][:256])
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            assert norm.bias is not None
            norm.bias.uniform_(-0.2, 0.2)
    report = export_onnx(ens, tmp_path / "m.onnx", images=x, saturating=False, max_disagreement=0.02)
    with torch.no_grad():
        off = (OnnxModel(report.path)(x) - ens(x)).abs()
    # Only codes in front of the mean differ; biases rounded to whole steps of the sums moved this tenfold.
    assert float(off.median()) < 0.005


def test_stochastic_graphs_have_the_same_mean_and_variance(tmp_path: Path) -> None:
    _, _, x, y = digits()
    report = export_onnx(
        pair(), tmp_path / "m.onnx", "sample", images=x[:32], labels=y[:32], saturating=False
    )
    assert report.parity is not None
    assert report.floating == ()
    assert report.opset == 21
    assert _optimized(report.path, tmp_path)["QLinearConv"] == 6
    model = OnnxModel(report.path)
    assert not torch.equal(model(x[:4]), model(x[:4]))
    assert not torch.equal(OnnxModel(report.path)(x[:4]), OnnxModel(report.path)(x[:4]))


def test_fine_noise_behind_a_convolution_keeps_it_in_floats(tmp_path: Path) -> None:
    # 8-bit codes in front of an 8-bit noisy quantizer would leave its noise nothing to move.
    ens = trained(
        (4,), overrides={"conv2.0": {"activation_bits": 8, "granularity": "channel"}}, noise="gaussian"
    )
    report = export_onnx(ens, tmp_path / "m.onnx", "sample", images=digits()[2][:32], saturating=False)
    assert report.floating == ("members.0.conv1.0",)
    assert len(report.integer) == 3


def test_any_batch_size_and_no_dependence_on_the_batch(tmp_path: Path) -> None:
    x = digits()[2][:17]
    model = OnnxModel(export_onnx(pair(), tmp_path / "m.onnx").path)
    together = model(x)
    assert together.shape == (17, 10)
    # Sums in another order: float rounding.
    assert torch.allclose(torch.cat([model(x[i : i + 1]) for i in range(17)]), together, atol=1e-4)
    assert model(x.double()).dtype == torch.float64


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_other_widths_and_full_precision(bits: int, tmp_path: Path) -> None:
    x = digits()[2][:64]
    ens = trained((bits, None), activation_width=0.0)
    report = export_onnx(ens, tmp_path / "m.onnx", images=x, saturating=False, max_disagreement=0.06)
    assert report.opset == (25 if bits == 1 else 18)
    assert len(report.integer) == 4


def test_saturating_cpus_get_seven_bits(tmp_path: Path) -> None:
    ens = trained((8,), first_last_bits=8)
    report = export_onnx(
        ens, tmp_path / "m.onnx", images=digits()[2][:200], saturating=True, max_disagreement=0.06
    )
    # Their inputs have 8 bits; the others' have 4 and cannot reach 16 bits.
    assert report.narrowed == ("members.0.conv1.0", "members.0.classifier")
    assert OnnxModel(report.path).card["exact_without_vnni"] is True


def test_a_cpu_that_saturates_is_warned_about_wide_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_onnx(pair(), tmp_path / "m.onnx", saturating=False).path
    monkeypatch.setattr("squint.export.onnx.runtime.saturates", lambda: False)
    OnnxModel(path)
    monkeypatch.setattr("squint.export.onnx.runtime.saturates", lambda: True)
    with pytest.warns(UserWarning, match="export it with saturating=True"):
        OnnxModel(path)
    OnnxModel(export_onnx(pair(), path, saturating=True).path)


def test_sequences_with_and_without_quantizers(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=(1, 0), stride=(1, 2), groups=1), nn.ReLU()),
            nn.Dropout(0.5),
            nn.Conv2d(4, 6, 3, dilation=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
            nn.ReLU(),
            nn.Linear(5, 3),
        ).eval()
    x = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    mixed = squint.quantize(
        net, 4, 8, 4, overrides={"2": {"activation_bits": None}, "7": {"weight_bits": None}}
    )
    squint.calibrate(mixed, x)
    for place, network in enumerate((net, mixed)):
        ens = squint.Ensemble([network]).eval()
        path = tmp_path / f"{place}.onnx"
        report = export_onnx(ens, path, images=x, max_disagreement=0.1, saturating=False)
        assert report.floating == ((), ("members.0.2", "members.0.7"))[place]
        squint.set_rounding(ens, "nearest")
        with torch.no_grad():
            # Float rounding alone, or 8-bit codes on top of it.
            assert torch.allclose(OnnxModel(path)(x), ens(x), atol=(1e-5, 0.03)[place])


def test_a_layer_that_runs_twice_is_exported_twice(tmp_path: Path) -> None:
    relu, x = nn.ReLU(), torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        net = nn.Sequential(nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 6, 3), relu, *head).eval()
    ens = squint.Ensemble([net]).eval()
    path = export_onnx(ens, tmp_path / "twice.onnx").path
    with torch.no_grad():
        assert torch.allclose(OnnxModel(path)(x), ens(x), atol=1e-5)


def test_the_mean_probability_survives_extreme_logits(tmp_path: Path) -> None:
    nets = [nn.Linear(2, 3) for _ in range(2)]
    with torch.no_grad():
        for sign, net in zip((1.0, -1.0), nets, strict=True):
            net.weight.copy_(sign * 4000 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
            net.bias.zero_()
    ens = squint.Ensemble([nn.Sequential(net) for net in nets])
    x = torch.tensor([[0.3, 0.8], [1.0, 0.0]])
    with torch.no_grad():
        assert torch.allclose(OnnxModel(export_onnx(ens, tmp_path / "m.onnx").path)(x), ens(x))


def test_the_model_card_is_complete_and_names_no_machine(tmp_path: Path) -> None:
    x = digits()[2][:32]
    record = {"robust_accuracy": 0.5, "trusted": True, "red_flags": []}
    path = export_onnx(
        pair(), tmp_path / "m.onnx", "sample", images=x, robustness=record, recipe={"recipe": "digits"}
    ).path
    model = onnx.load(path)
    card: dict[str, Any] = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert card["robustness"] == record
    assert card["trusted"] is True
    assert card["robustness_rounding"] == "sample"
    assert card["detector"] is None
    assert card["recipe"] == {"recipe": "digits"}
    assert (card["rounding"], card["draws"], card["members"], card["num_classes"]) == ("sample", 2, 2, 10)
    assert card["parity"]["n"] == 32
    assert {"squint_version", "torch_version", "onnx_version"} <= card.keys()
    assert model.producer_name == "squint"
    content = path.read_bytes()
    assert not any(word in content for word in (b"/home", b"/tmp", b"/root", b".py", b"Traceback"))
    assert str(Path.cwd()).encode() not in content
    assert not model.graph.node[0].doc_string


def test_a_record_measured_with_noise_makes_no_graph_without_noise_trusted(tmp_path: Path) -> None:
    record = {"robust_accuracy": 0.5, "trusted": True}
    noiseless = copy.deepcopy(pair())
    squint.set_rounding(noiseless, "nearest")
    for ens, rounding, trusted in ((pair(), "nearest", False), (noiseless, "nearest", True)):
        card = export_onnx(ens, tmp_path / "m.onnx", rounding, robustness=record).card
        assert card["robustness"] == record
        assert card["trusted"] is trusted
        assert card["robustness_rounding"] == ("nearest" if trusted else "sample")


def test_where_nothing_is_drawn_sampling_is_checked_like_nearest(tmp_path: Path) -> None:
    x = digits()[2][:64]
    ens = trained((3,), input_width=0.0, activation_width=0.0)
    report = export_onnx(ens, tmp_path / "m.onnx", "sample", images=x, saturating=False)
    assert report.rounding == report.card["rounding"] == "nearest"
    assert report.parity is not None
    assert report.parity.n == 64
    assert report.parity.comparisons[0].disagreement is not None


def test_ranges_come_from_the_images_that_are_meant_for_them(tmp_path: Path) -> None:
    train, _, test, _ = digits()
    outputs = []
    for ranging in (None, test[:32], train[:256]):
        report = export_onnx(
            pair(), tmp_path / "m.onnx", images=test[:32], range_images=ranging, max_disagreement=0.1
        )
        outputs.append(OnnxModel(report.path)(test[:32]))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_ensembles_of_half_precision_are_exported_and_counted(tmp_path: Path) -> None:
    x = digits()[2][:64]
    half = copy.deepcopy(pair()).half()
    report = export_onnx(half, tmp_path / "m.onnx", images=x, saturating=False)
    assert report.parity is not None
    assert next(half.parameters()).dtype == torch.float16
    assert info_table(half, (1, 8, 8)).bit_operations == info_table(pair(), (1, 8, 8)).bit_operations
