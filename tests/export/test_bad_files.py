"""What `load` refuses, with one clear line, and what `save` leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import squint
from squint._checks import InputError, InputTypeError
from squint._files import read_tensors, write_tensors
from squint.ensemble import Ensemble
from squint.models import small_cnn


def images(batch: int = 4) -> Tensor:
    return torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def header(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = read_tensors(path)
    return tensors, json.loads(metadata["squint"])


def rewrite(path: Path, edit: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
    tensors, config = header(path)
    edit(tensors, config)
    write_tensors(path, tensors, {"squint": json.dumps(config)})


def put(*keys: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    """Set config[keys[0]][keys[1]]... to the last of `keys`."""

    def edit(_: dict[str, Tensor], config: dict[str, Any]) -> None:
        place: Any = config
        for key in keys[:-2]:
            place = place[key]
        place[keys[-2]] = keys[-1]

    return edit


M = ("members", 0)


ODD: list[Any] = [None, 5, "text", [], [1], {}, {"a": 1}, True, 1e400, -1]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize(
    "keys",
    [
        ("members",), M, (*M, "model"), (*M, "model", "name"), (*M, "model", "width"), (*M, "model", "mean"),
        (*M, "quantize"), (*M, "quantize", "weight_bits"), (*M, "quantize", "width"),
        (*M, "quantize", "input_range"), (*M, "quantize", "overrides"), (*M, "quantize", "features"),
        (*M, "quantize", "noise"), (*M, "modes"), (*M, "modes", "input_quantizer"),
        ("draws",), ("chunk",), ("format_version",),
    ],
    ids=lambda keys: ".".join(str(key) for key in keys),
)  # fmt: skip
def test_any_type_anywhere_is_an_input_error_or_loads(keys: tuple[Any, ...], odd: Any, saved: Path) -> None:
    rewrite(saved, put(*keys, odd))
    try:
        ens = squint.load(saved)
    except (InputError, InputTypeError) as error:
        message = str(error)
    else:
        message = str(tuple(ens(images()).shape))
    assert message == "(4, 4)" or (str(saved) in message and "\n" not in message)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net = squint.quantize(small_cnn(4, 1, 2), 3, 2, 1)
    squint.calibrate(net, images())
    squint.save(Ensemble([net]), tmp_path / "e")
    return tmp_path / "e"


def pop(*keys: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    def edit(_: dict[str, Tensor], config: dict[str, Any]) -> None:
        place: Any = config
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return edit


NORM = "members.0.network.normalize.mean"


LEVELS = "members.0.input_quantizer.level_count"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("format_version", 2), "format version 2"),
        (put("format_version", "1"), "no squint configuration"),
        (put("draws", 2.5), "draws is 2.5"),
        (put("draws", 10**12), r"draws is 1000000000000; allowed: .* 1e\+06"),
        (put("chunk", 0), "chunk is 0"),
        (pop(*M, "model"), "cannot be built"),
        (put(*M, "model", "name", "resnet9"), "member 0: model is 'resnet9'"),
        (put(*M, "model", "width", 3), r"another architecture: .* is \(2, 1, 3, 3\) in the file, \(3, 1"),
        (put(*M, "model", "num_classes", 7), "another architecture"),
        (put(*M, "quantize", "weight_bits", 9), "weight_bits is 9"),
        (put(*M, "quantize", "unknown", 1), "unknown"),
        (put(*M, "quantize", "input_bits", None), "quantizers lie elsewhere"),
        (put(*M, "modes", "input_quantizer", ["up", "expected"]), "rounding of input_quantizer is 'up'"),
        (put(*M, "modes", "input_quantizer", ["sample", 3]), "gradient of input_quantizer is 3"),
        (pop(*M, "modes", "input_quantizer"), "quantizers lie elsewhere"),
        (lambda t, _c: t.pop(NORM), "mean is missing"),
        (lambda t, _c: t.update({NORM: torch.zeros(2, 1, 1)}), "another architecture"),
        (lambda t, _c: t.update({NORM: torch.zeros(1, 1, 1).long()}), "mean is torch.int64"),
        (lambda t, _c: t.update({NORM: torch.zeros(1, 1, 1).to(torch.float8_e4m3fn)}), "float8"),
        (lambda t, _c: t.update(extra=torch.zeros(1)), "extra of .* is not part of the network"),
        (lambda t, _c: t.update({LEVELS: torch.tensor(10**9)}), "level_count is 1000000000"),
        (lambda t, _c: t.update({LEVELS: torch.tensor(-1)}), "level_count is -1"),
    ],
)  # fmt: skip
def test_foreign_content_is_named(
    edit: Callable[[dict[str, Tensor], dict[str, Any]], Any], words: str, saved: Path
) -> None:
    rewrite(saved, edit)
    with pytest.raises(InputError, match=words):
        squint.load(saved)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "resnet18", "num_classes": 10, "in_channels": 3, "width": 4096, "mean": None, "std": None},
        {
            "name": "small_cnn",
            "num_classes": 10**6,
            "in_channels": 4096,
            "width": 4096,
            "mean": None,
            "std": None,
        },
    ],
)
def test_a_huge_architecture_is_refused_before_it_is_allocated(
    spec: dict[str, Any], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    original = nn.Conv2d.reset_parameters

    def watch(self: nn.Conv2d) -> None:
        devices.append(self.weight.device.type)
        original(self)

    monkeypatch.setattr(nn.Conv2d, "reset_parameters", watch)
    rewrite(saved, put(*M, "model", spec))
    with pytest.raises(InputError, match="another architecture"):
        squint.load(saved)
    assert set(devices) == {"meta"}


def test_other_files_are_refused(tmp_path: Path, saved: Path) -> None:
    content = saved.read_bytes()
    for cut in (0, 7, 100, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(InputError, match="no whole safetensors file"):
            squint.load(tmp_path / "cut")
    write_tensors(tmp_path / "foreign", {"a": torch.zeros(1)}, {})
    with pytest.raises(InputError, match=r"was not written by squint\.save"):
        squint.load(tmp_path / "foreign")
    for text in ("[", "[]", "{}", "[" * 50_000, '{"format_version": 1, "members": []}'):
        write_tensors(tmp_path / "foreign", {"a": torch.zeros(1)}, {"squint": text})
        with pytest.raises(InputError, match=r"was not written by squint\.save"):
            squint.load(tmp_path / "foreign")
    with pytest.raises(InputError, match="does not exist"):
        squint.load(tmp_path / "none")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, saved: Path) -> None:
    content = saved.read_bytes()
    with pytest.raises(InputTypeError, match=r"save needs a squint\.Ensemble, got SmallCNN"):
        squint.save(small_cnn(4, 1, 2), saved)  # type: ignore[arg-type]
    with torch.device("meta"):
        empty = Ensemble([small_cnn(4, 1, 2)])
    with pytest.raises(InputError, match="cannot write"):
        squint.save(empty, saved)
    assert saved.read_bytes() == content
    with pytest.raises(InputError, match="cannot write"):
        squint.save(Ensemble([small_cnn(4, 1, 2)]), tmp_path)
