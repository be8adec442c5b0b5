"""The same outputs again from a file, in this process and in a new one."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint._checks import InputError, InputTypeError
from squint._files import read_tensors
from squint.ensemble import Ensemble
from squint.models import SmallCNN, small_cnn


def images(batch: int = 4) -> Tensor:
    return torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@cache
def _built() -> Ensemble:
    members = [
        squint.quantize(small_cnn(4, 1, 2), 3, 2, 1, overrides={"conv2.*": {"activation_bits": 5}}),
        squint.quantize(small_cnn(4, 1, 2), 2, 3, 2, noise="logistic", learn_width=True, weight_width=0.5),
        small_cnn(4, 1, 2, mean=[0.4], std=[0.3]),
    ]
    ens = Ensemble(members, draws=3, chunk=64).train()
    squint.calibrate(ens, images(16))
    # Running statistics of a batch, so that they are not what a new network has.
    with torch.no_grad(), squint.noise(torch.Generator().manual_seed(1)):
        ens(images(16))
    return ens.eval()


def ensemble() -> Ensemble:
    return copy.deepcopy(_built())


def outputs(ens: Ensemble) -> dict[str, Tensor]:
    with torch.no_grad():
        sample = ens.member_logits(images(), 3, generator=torch.Generator().manual_seed(5))
        modes = {q: q.rounding for q in ens.modules() if isinstance(q, squint.StochasticQuantizer)}
        squint.set_rounding(ens, "nearest")
        nearest = ens(images())
        for quantizer, rounding in modes.items():
            quantizer.rounding = rounding
    return {"sample": sample, "nearest": nearest}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_a_loaded_ensemble_gives_the_same_bits(tmp_path: Path) -> None:
    ens, path = ensemble(), tmp_path / "e.safetensors"
    state = {name: value.clone() for name, value in ens.state_dict().items()}
    rng = torch.get_rng_state()
    squint.save(ens, path)
    again = squint.load(path)
    assert torch.equal(torch.get_rng_state(), rng)
    assert equal(outputs(ens), outputs(again))
    assert (again.draws, again.chunk, again.training) == (3, 64, False)
    assert all(torch.equal(value, state[name]) for name, value in ens.state_dict().items())
    learns = {name for name, p in again.named_parameters() if p.requires_grad}
    assert learns == {name for name, _ in ens.named_parameters()}
    squint.save(again, tmp_path / "twice")
    assert (tmp_path / "twice").read_bytes() == path.read_bytes()


def test_a_new_process_gives_the_same_bits(tmp_path: Path) -> None:
    ens = ensemble()
    squint.save(ens, tmp_path / "e")
    script = f"""
import sys, torch, squint
torch.set_num_threads({torch.get_num_threads()})
ens = squint.load({str(tmp_path / "e")!r})
x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    sample = ens.member_logits(x, 3, generator=torch.Generator().manual_seed(5))
    squint.set_rounding(ens, "nearest")
    from squint._files import write_tensors
    from pathlib import Path
    write_tensors(Path({str(tmp_path / "out")!r}), {{"sample": sample, "nearest": ens(x)}}, {{}})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
    found, _ = read_tensors(tmp_path / "out")
    assert equal(outputs(ens), found)


def test_modes_come_back(tmp_path: Path) -> None:
    ens = ensemble()
    squint.set_rounding(ens.members[0], "nearest")
    squint.set_gradient(ens.members[1], "straight_through")
    squint.save(ens, tmp_path / "e")
    again = squint.load(tmp_path / "e")
    for before, after in zip(ens.members, again.members, strict=True):
        kinds = [
            [(q.rounding, q.gradient) for q in m.modules() if isinstance(q, squint.StochasticQuantizer)]
            for m in (before, after)
        ]
        assert kinds[0] == kinds[1]
    assert not again.members[0].network.conv1[0].activation_quantizer.stochastic  # type: ignore[union-attr, index]


def test_doubles_come_back_as_doubles(tmp_path: Path) -> None:
    ens = Ensemble([small_cnn(4, 1, 2)]).double().eval()
    squint.save(ens, tmp_path / "e")
    again = squint.load(tmp_path / "e")
    assert torch.equal(again(images().double()), ens(images().double()))


def test_one_step_for_all_channels_comes_back(tmp_path: Path) -> None:
    ens = ensemble()
    weight = ens.members[0].network.conv1[0].weight_quantizer  # type: ignore[union-attr, index]
    assert isinstance(weight, squint.StochasticQuantizer)
    weight.set_range(-1.0, 1.0)
    squint.save(ens, tmp_path / "e")
    assert equal(outputs(ens), outputs(squint.load(tmp_path / "e")))


class Own(nn.Module):
    """Somebody's own architecture, with tied layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.second = nn.Linear(64, width)
        self.second.weight = self.first.weight
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        logits: Tensor = self.head((self.first(z) * self.second(z)).relu())
        return logits


def test_other_architectures_are_passed(tmp_path: Path) -> None:
    quantized = squint.quantize(Own(), 3, 3, 2)
    squint.calibrate(quantized, images(16))
    ens = Ensemble([quantized, Own()]).eval()
    squint.save(ens, tmp_path / "e")
    with pytest.raises(InputError, match=r"member 0: is no network of squint.models; pass it"):
        squint.load(tmp_path / "e")
    given = [Own(), Own()]
    held = [p for net in given for p in net.parameters()]
    before = [p.clone() for p in held]
    again = squint.load(tmp_path / "e", members=given)
    assert equal(outputs(ens), outputs(again))
    own = again.members[1]
    assert isinstance(own, Own)
    assert own.first.weight is own.second.weight
    assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))
    assert given[1].training
    also = squint.load(tmp_path / "e", members=[squint.quantize(Own(), 3, 3, 2), Own()])
    assert equal(outputs(ens), outputs(also))
    with pytest.raises(InputError, match=r"members has 1 networks; .* holds 2"):
        squint.load(tmp_path / "e", members=[Own()])
    with pytest.raises(InputError, match=r"another architecture: .* is \(8, 64\) in the file, \(9, 64\)"):
        squint.load(tmp_path / "e", members=[Own(9), Own(9)])
    with pytest.raises(InputError, match="another architecture"):
        squint.load(tmp_path / "e", members=[Own(), small_cnn(4, 1, 2)])
    with pytest.raises(InputError, match="another architecture"):
        squint.load(tmp_path / "e", members=[Own(), squint.quantize(Own())])
    with pytest.raises(InputTypeError, match="members is a Own; allowed: a list of networks"):
        squint.load(tmp_path / "e", members=Own())  # type: ignore[arg-type]
    with pytest.raises((InputError, InputTypeError), match="member 0"):
        squint.load(tmp_path / "e", members=["a", "b"])  # type: ignore[list-item]


def _other_classes(net: SmallCNN) -> None:
    net.classifier = nn.Linear(8, 3)


def _other_stride(net: SmallCNN) -> None:
    cast(nn.Conv2d, net.conv2[0]).stride = (1, 1)


def _other_eps(net: SmallCNN) -> None:
    cast(nn.BatchNorm2d, net.conv2[1]).eps = 0.5


@pytest.mark.parametrize("change", [_other_classes, _other_stride, _other_eps])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_network_of_ours_that_was_changed_is_not_taken_for_ours(
    change: Callable[[SmallCNN], None], quantized: bool, tmp_path: Path
) -> None:
    net = cast(SmallCNN, small_cnn(4, 1, 2))
    change(net)
    member = squint.quantize(net, 3, 3, 2) if quantized else net
    if quantized:
        squint.calibrate(member, images(16))
    ens = Ensemble([member]).eval()
    squint.save(ens, tmp_path / "e")
    with pytest.raises(InputError, match=r"no network of squint\.models"):
        squint.load(tmp_path / "e")
    assert equal(outputs(squint.load(tmp_path / "e", members=[member])), outputs(ens))


def test_how_statistics_are_gathered_makes_no_other_network(tmp_path: Path) -> None:
    net = cast(SmallCNN, small_cnn(4, 1, 2))
    cast(nn.BatchNorm2d, net.conv2[1]).momentum = None
    squint.save(Ensemble([net]), tmp_path / "e")
    assert torch.equal(squint.load(tmp_path / "e")(images()), Ensemble([net]).eval()(images()))


@pytest.mark.parametrize("number", ["step", "width", "offset"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_of_a_quantizer_that_are_not_finite_are_refused(
    number: str, value: float, tmp_path: Path
) -> None:
    ens = ensemble()
    quantizer = ens.get_submodule("members.1.network.conv2.0.activation_quantizer")
    with torch.no_grad():
        getattr(quantizer, number).fill_(value)
    squint.save(ens, tmp_path / "e")
    with pytest.raises(InputError, match=rf"conv2\.0\.activation_quantizer\.{number} is not finite"):
        squint.load(tmp_path / "e")
