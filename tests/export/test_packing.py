"""Packing: closed forms of the bit stream, and networks that come back bit for bit."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import squint
from squint import InputError
from squint.export.packing import PACKED_KEY, pack, pack_levels, unpack, unpack_levels


def _ensemble(bits: int | None, **options: Any) -> squint.Ensemble:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        base = squint.models.resnet8(5, 2, 4)
    x = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    ens = squint.Ensemble([squint.quantize(base, bits, 4, 2, **options)], draws=2).eval()
    squint.calibrate(ens, x)
    return ens


def _outputs(ens: squint.Ensemble, rounding: str) -> torch.Tensor:
    x = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    squint.set_rounding(ens, rounding)
    with torch.no_grad():
        return ens.member_logits(x, 3, generator=torch.Generator().manual_seed(2))


def test_bits_follow_each_other_lowest_first() -> None:
    assert pack_levels(torch.tensor([1, 0, 0, 1, 1]), 1).tolist() == [0b11001]
    assert pack_levels(torch.tensor([0b101, 0b011, 0b111]), 3).tolist() == [0b11_011_101, 0b1]
    assert pack_levels(torch.tensor([7, 200]), 8).tolist() == [7, 200]


@given(bits=st.integers(1, 8), values=st.lists(st.integers(0, 255), max_size=70))
def test_levels_come_back_from_the_least_number_of_bytes(bits: int, values: list[int]) -> None:
    levels = torch.tensor([value % 2**bits for value in values], dtype=torch.int64)
    packed = pack_levels(levels, bits)
    assert packed.numel() == math.ceil(len(values) * bits / 8)
    assert torch.equal(unpack_levels(packed, bits, len(values)), levels)


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_network_comes_back_bit_for_bit(bits: int) -> None:
    ens = _ensemble(bits)
    tensors, metadata = pack(ens)
    assert tensors["members.0.network.stages.1.conv1.0.weight"].numel() == math.ceil(8 * 4 * 9 * bits / 8)
    other = _ensemble(bits)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.3)
    other.load_state_dict(unpack(tensors, metadata))
    for rounding in ("nearest", "sample"):
        assert torch.equal(_outputs(ens, rounding), _outputs(other, rounding))
    again, _ = pack(other)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_packing_changes_nothing_in_the_network() -> None:
    ens = _ensemble(4)
    before = {name: value.clone() for name, value in ens.state_dict().items()}
    pack(ens)
    assert all(torch.equal(before[name], value) for name, value in ens.state_dict().items())


def test_noisy_weights_and_full_precision_stay_floats() -> None:
    for ens in (_ensemble(4, weight_width=1.0), _ensemble(None, first_last_bits=None)):
        tensors, metadata = pack(ens)
        assert json.loads(metadata[PACKED_KEY])["weights"] == {}
        state = ens.state_dict()
        back = unpack(tensors, metadata)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


class Tied(nn.Module):
    """Two layers of one weight, and what reads it as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        self.a, self.b, self.c = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.b.weight = self.a.weight
        self.table = self.c.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.b(self.a(self.first(x.flatten(1)).relu()).relu())
        out: torch.Tensor = self.last(self.c(h) + h @ self.table)
        return out


@pytest.mark.parametrize(("bits", "packed"), [(4, {"a", "b"}), (2, set())])
def test_weights_that_layers_share_come_back_bit_for_bit(bits: int, packed: set[str]) -> None:
    net = squint.quantize(Tied(), 4, 8, None, width=0.0, overrides={"b": {"weight_bits": bits}})
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    squint.calibrate(net, x)
    ens = squint.Ensemble([net]).eval()
    again = copy.deepcopy(ens)
    tensors, metadata = pack(ens)
    again.load_state_dict(unpack(tensors, metadata))
    assert torch.equal(again(x), ens(x))
    held = {name.split(".")[-2] for name in json.loads(metadata[PACKED_KEY])["weights"]}
    # That c's weight is also read as it is keeps it in floats.
    assert held == packed | {"first", "last"}


def test_a_file_without_packed_weights_is_left_as_it_is() -> None:
    tensors = {"a": torch.ones(2)}
    assert unpack(tensors, {}) == tensors


@pytest.mark.parametrize(
    ("levels", "bits", "words"),
    [([4], 2, "allowed at 2 bits: 0..3"), ([-1], 8, "allowed at 8 bits"), ([0], 9, "1..8")],
)
def test_levels_that_do_not_fit_are_refused(levels: list[int], bits: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pack_levels(torch.tensor(levels), bits)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"weights": {}}',
        '{"numbers": [], "weights": {"weight": 3}}',
        '{"numbers": [], "weights": {"other.weight": [4, 2]}}',
        '{"numbers": [], "weights": {"weight": [4, -2]}}',
        '{"numbers": [], "weights": {"weight": [9, 1]}}',
        '{"numbers": [], "weights": {"weight": ["4", 2]}}',
        '{"numbers": [], "weights": {"weight": [4, 2, 0.5]}}',
        '{"numbers": [[[["b", "float32"]], ["a"]]], "weights": {}}',
        '{"numbers": [[[["b", "int64"]], ["a", "c"]]], "weights": {}}',
        '{"numbers": [3], "weights": {}}',
    ],
)
def test_a_damaged_description_is_refused(text: str) -> None:
    tensors = {
        "weight": torch.zeros(1, dtype=torch.uint8),
        "weight_quantizer.step": torch.ones(1),
        "weight_quantizer.offset": torch.zeros(()),
        "packed_numbers.int64": torch.zeros(1, dtype=torch.int64),
    }
    with pytest.raises(InputError, match="damaged"):
        unpack(tensors, {PACKED_KEY: text})


def test_a_stream_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"needed for 5 values of 4 bits: \(3,\)"):
        unpack_levels(torch.zeros(2, dtype=torch.uint8), 4, 5)


def test_a_saved_file_is_smaller_and_loads_bit_for_bit(tmp_path: Path) -> None:
    ens = squint.Ensemble([_ensemble(4).members[0], _ensemble(1).members[0]], draws=3)
    squint.save(ens, tmp_path / "full.safetensors")
    squint.save(ens, tmp_path / "packed.safetensors", packed=True)
    full, packed = (tmp_path / f"{name}.safetensors" for name in ("full", "packed"))
    assert packed.stat().st_size < full.stat().st_size / 2
    back = squint.load(packed)
    for rounding in ("nearest", "sample"):
        assert torch.equal(_outputs(ens, rounding), _outputs(back, rounding))
    content = packed.read_bytes().replace(b'\\"weights\\"', b'\\"weighty\\"')
    packed.write_bytes(content)
    with pytest.raises(InputError, match=r"packed.safetensors: .* damaged"):
        squint.load(packed)


def test_a_resnet20_of_4_bits_takes_a_sixth_of_its_full_size(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        base = squint.models.resnet20()
    net = squint.quantize(base, 4, 4, 4)
    squint.save(squint.Ensemble([net]), tmp_path / "packed.safetensors", packed=True)
    full = 4 * sum(parameter.numel() for parameter in base.parameters())
    assert (tmp_path / "packed.safetensors").stat().st_size <= full / 6
