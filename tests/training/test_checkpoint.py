from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.nets import ensemble, toy_data
from torch import nn

from squint._checks import InputError
from squint._files import read_tensors, write_tensors
from squint.training import TrainConfig, fit
from squint.training.checkpoint import Progress, Rhythm, load_checkpoint, save_checkpoint

RECIPE = {"seed": 1}


def trained(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = nn.Linear(2, width)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return net, optimizer


def write(path: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    net, optimizer = trained()
    average = {name: value + 1 for name, value in net.state_dict().items()}
    progress = Progress(3, {"ce": 0.1 + 0.2}, 1.5, [{"epoch": 1}])
    save_checkpoint(path, net, optimizer, average, progress, RECIPE)
    return net, optimizer


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    net, optimizer = write(tmp_path / "c")
    other, its = trained()
    average = {name: torch.zeros_like(value) for name, value in other.state_dict().items()}
    progress = load_checkpoint(tmp_path / "c", other, its, average, RECIPE)
    assert progress == Progress(3, {"ce": 0.1 + 0.2}, 1.5, [{"epoch": 1}])
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
        assert torch.equal(average[name], value + 1)
    for a, b in zip(optimizer.state.values(), its.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def change(path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    tensors, metadata = read_tensors(path)
    header = json.loads(metadata["squint_checkpoint"])
    edit(tensors, header)
    write_tensors(path, tensors, {"squint_checkpoint": json.dumps(header)})


def put(part: str, key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _tensors, header: header[part].update({key: value})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda _t, h: h.update(format_version=2), "format version 2; .*: update squint, or remove it"),
        (lambda t, _h: t.pop("optimizer.0.step"), "holds another optimizer's state of parameter 0"),
        (
            lambda t, _h: t.update({"optimizer.1.momentum_buffer": torch.zeros(3)}),
            "another optimizer's state",
        ),
        (lambda _t, h: h.update(format_version="1"), "no checkpoint"),
        (lambda _t, h: h.update(progress=[]), "no checkpoint"),
        (lambda _t, h: h.update(recipe=5), "no checkpoint"),
        (put("progress", "step", "3"), "no checkpoint"),
        (put("progress", "step", -1), "no checkpoint"),
        (put("progress", "entries", [1]), "no checkpoint"),
        (put("progress", "sums", {"ce": "x"}), "no checkpoint"),
        (put("progress", "sums", [1]), "no checkpoint"),
        (put("progress", "seconds", None), "no checkpoint"),
        (put("progress", "more", 1), "no checkpoint"),
        (put("numbers", "x.y", 1.0), "optimizer of another network"),
        (put("numbers", "7.y", 1.0), "optimizer of another network"),
        (put("numbers", "0.y", "a"), "no checkpoint"),
        (put("recipe", "seed", 2), "another training: seed was 2, is 1"),
        (lambda t, _h: t.pop("module.bias"), "another network"),
        (lambda t, _h: t.update({"module.weight": torch.zeros(3, 3)}), "another network"),
        (lambda t, _h: t.update({"module.weight": torch.zeros(3, 2).double()}), "another network"),
        (lambda t, _h: t.update({"average.bias": torch.zeros(1)}), "another network"),
        (lambda t, _h: t.update({"optimizer.0.exp_avg": torch.zeros(9)}), "optimizer of another network"),
    ],
)
def test_foreign_content_is_one_clear_error_and_changes_nothing(
    edit: Callable[[dict[str, Any], dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    write(tmp_path / "c")
    change(tmp_path / "c", edit)
    net, optimizer = trained()
    average = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(InputError, match=words):
        load_checkpoint(tmp_path / "c", net, optimizer, average, RECIPE)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(float(value.abs().sum()) == 0 for value in average.values())


def test_only_the_same_training_goes_on(tmp_path: Path) -> None:
    path, settings = tmp_path / "c", {"epochs": 1, "batch_size": 16, "accelerator": "cpu"}
    fit(ensemble(), toy_data(), TrainConfig(**settings), checkpoint=path)  # type: ignore[arg-type]
    for changed, data, word in (
        ({"epochs": 2}, toy_data(), "epochs was 1, is 2"),
        ({"learning_rate": 1.0}, toy_data(), "learning_rate"),
        ({}, toy_data(32), "images was 48, is 32"),
    ):
        with pytest.raises(InputError, match=word):
            fit(ensemble(), data, TrainConfig(**{**settings, **changed}), checkpoint=path)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="no whole safetensors file"):
        fit(ensemble(), toy_data(), TrainConfig(**settings), checkpoint=path)  # type: ignore[arg-type]


def test_a_checkpoint_from_before_an_option_is_of_a_training_with_its_default(tmp_path: Path) -> None:
    path, settings = tmp_path / "c", {"epochs": 1, "batch_size": 16, "accelerator": "cpu"}
    fit(ensemble(), toy_data(), TrainConfig(**settings), checkpoint=path)  # type: ignore[arg-type]
    change(path, lambda _tensors, header: header["recipe"].pop("cycles"))
    assert len(fit(ensemble(), toy_data(), TrainConfig(**settings), checkpoint=path)) == 1  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cycles was 1, is 2"):
        fit(ensemble(), toy_data(), TrainConfig(**settings, cycles=2), checkpoint=path)  # type: ignore[arg-type]


def test_a_checkpoint_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        fit(
            ensemble(),
            toy_data(),
            TrainConfig(epochs=1, batch_size=16, accelerator="cpu"),
            checkpoint=tmp_path / "file" / "c",
        )


def test_checkpoints_that_take_long_are_written_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("squint.training.checkpoint.time.perf_counter", lambda: now[0])
    rhythm = Rhythm()
    for seconds, wait in ((0.2, 0.0), (3.0, 100.0)):
        assert rhythm.due()
        with rhythm.saving():
            now[0] += seconds
        now[0] += 0.99 * wait
        assert rhythm.due() == (wait == 0)
        now[0] += 0.02 * wait
    assert rhythm.due()
