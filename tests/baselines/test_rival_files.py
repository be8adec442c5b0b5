"""Files of rivals: other architectures, packed weights, and headers that somebody changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import squint
from squint._checks import InputError
from squint._files import read_tensors, write_tensors
from squint.baselines import RIVALS, ConvertedNetwork, make_rival
from squint.ensemble import Ensemble
from tests.baselines.tiny import source, system, toy_data


def foreign(seed: int) -> nn.Sequential:
    """A network that is none of squint's."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source(seed)))
    return net


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if rival.own_layers])
def test_other_architectures_are_given_again(name: str, tmp_path: Path) -> None:
    rival = make_rival(name)
    count = rival.member_count(1)
    ens = rival.ensemble([rival.member(foreign(k), k) for k in range(count)], 2).eval()
    if name == "lsq":
        squint.calibrate(ens, toy_data()[0])
    squint.save(ens, tmp_path / "foreign.safetensors")
    if name != "lsq":
        with pytest.raises(InputError, match=r"pass it in load\(path, members=\[\.\.\.\]\)"):
            squint.load(tmp_path / "foreign.safetensors")
    x = toy_data(3)[0]
    expected = ens.member_logits(x, 2, generator=source())
    converted = [rival.member(foreign(9), k) for k in range(count)]
    for given in ([foreign(9) for _ in range(count)], converted):
        loaded = squint.load(tmp_path / "foreign.safetensors", members=given)
        assert torch.equal(loaded.member_logits(x, 2, generator=source()), expected)


def test_packed_weights_of_mixed_members(tmp_path: Path) -> None:
    """LSQ's weights are packed in their bits; DoReFa's and full precision stay as they are."""
    ens = Ensemble(
        [member for name in ("lsq", "dorefa", "pni") for member in system(make_rival(name)).members], 2
    )
    squint.calibrate(ens, toy_data()[0])
    squint.save(ens.eval(), tmp_path / "packed.safetensors", packed=True)
    x = toy_data(3)[0]
    loaded = squint.load(tmp_path / "packed.safetensors")
    assert torch.equal(
        ens.member_logits(x, 2, generator=source()), loaded.member_logits(x, 2, generator=source())
    )


def rewritten(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    tensors, metadata = read_tensors(path)
    config = json.loads(metadata["squint"])
    edit(config)
    write_tensors(path, tensors, {"squint": json.dumps(config)})
    return path


@pytest.mark.parametrize(
    "rival",
    [
        "dorefa",
        5,
        [],
        {},
        {"name": "dorefa"},
        {"name": "no such", "options": {}},
        {"name": ["dorefa"], "options": {}},
        {"name": "dorefa", "options": {"weight_bits": 99}},
        {"name": "dorefa", "options": [1]},
        {"name": "pni", "options": {}},
        {"name": "random-precision", "options": {}},
        None,
    ],
    ids=str,
)
def test_a_header_that_names_another_rival_is_refused(rival: Any, tmp_path: Path) -> None:
    path = tmp_path / "rival.safetensors"
    squint.save(system(make_rival("dorefa")), path)

    def edit(config: dict[str, Any]) -> None:
        config["members"][0]["rival"] = rival

    with pytest.raises(InputError) as caught:
        squint.load(rewritten(path, edit))
    assert "\n" not in str(caught.value)
    assert "member 0" in str(caught.value)


def test_files_from_before_there_were_rivals_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    ens = system(make_rival("full-precision"))
    squint.save(ens, path)

    def edit(config: dict[str, Any]) -> None:
        del config["votes"], config["members"][0]["rival"]

    loaded = squint.load(rewritten(path, edit))
    assert type(loaded) is Ensemble
    x = toy_data(3)[0]
    assert torch.equal(ens.eval().member_logits(x, 1), loaded.member_logits(x, 1))


def test_a_converted_network_knows_its_rival() -> None:
    member = system(make_rival("dorefa", {"weight_bits": 3})).members[0]
    assert isinstance(member, ConvertedNetwork)
    assert member.rival == {"name": "dorefa", "options": {"weight_bits": 3, "activation_bits": 4}}
