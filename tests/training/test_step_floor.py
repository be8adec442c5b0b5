"""The floor under the steps of weights: in closed form, and in trainings that need it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.nets import ensemble, toy_data
from tests.training.settings import config, same
from tests.training.test_resume import stopping_at
from torch import Tensor, nn

import squint
from squint._checks import InputError
from squint._files import read_tensors, write_tensors
from squint.quantize.layers import QuantizedLayer
from squint.quantize.quantizer import StochasticQuantizer
from squint.training import TrainingStopped, fit
from squint.training.step_floor import StepFloor

FAST: dict[str, Any] = {"epochs": 20, "learning_rate": 0.02, "schedule": "constant"}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 4),
    "conv": lambda: nn.Conv2d(3, 4, 3),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3),
}


def quantized_layers(net: nn.Module) -> list[tuple[Tensor, StochasticQuantizer]]:
    """Weights as rows, one for each step, and their quantizers."""
    found = []
    for layer in net.modules():
        if isinstance(layer, QuantizedLayer) and layer.weight_quantizer is not None:
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            rows = layer.get_parameter("weight").detach().movedim(axis, 0).flatten(1)
            found.append((rows, layer.weight_quantizer))
    return found


def reaches(net: nn.Module) -> Tensor:
    """The largest level of each row of weights, in mean magnitudes of the row."""
    return torch.cat([q.high.flatten() / rows.abs().mean(1) for rows, q in quantized_layers(net)])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("bits", "largest"), [(1, 0.5), (2, 1), (3, 3), (4, 7), (8, 127)])
def test_a_step_below_its_floor_is_raised_to_it_and_others_stay(kind: str, bits: int, largest: float) -> None:
    torch.manual_seed(1)
    net = squint.quantize(LAYERS[kind](), bits, None, None, first_last_bits=bits)
    ((rows, quantizer),) = quantized_layers(net)
    with torch.no_grad():
        quantizer.step.fill_(10.0)
        quantizer.step.view(-1)[1] = -0.3
        quantizer.step.view(-1)[2] = 1e-6
    StepFloor(net, 0.7).hold()
    floors = 0.7 * rows.abs().mean(1) / largest
    wanted = torch.stack([torch.tensor(10.0), floors[1], floors[2], torch.tensor(10.0)])
    torch.testing.assert_close(quantizer.step.detach().flatten(), wanted)


def test_two_levels_are_held_where_they_err_least_and_no_higher() -> None:
    net = squint.quantize(nn.Linear(400, 4), 1, None, None, first_last_bits=1)
    ((rows, quantizer),) = quantized_layers(net)
    best = quantizer.high.flatten().clone()
    with torch.no_grad():
        quantizer.step.fill_(1e-6)
    StepFloor(net, 1.5).hold()
    torch.testing.assert_close(quantizer.high.flatten(), rows.abs().mean(1))
    # Calibration searches forty clipping points for the same.
    torch.testing.assert_close(quantizer.high.flatten(), best, rtol=0.05, atol=0)


def test_one_step_for_a_whole_layer_and_rows_of_zeros() -> None:
    net = squint.quantize(nn.Linear(6, 4), 3, None, None, first_last_bits=3)
    ((rows, quantizer),) = quantized_layers(net)
    with torch.no_grad():
        rows[1] = 0
        quantizer.step.fill_(1e-6)
        floor = StepFloor(net, 1.0)
        floor.hold()
        assert quantizer.step[1] == torch.tensor(1e-6)
        assert quantizer.step[0] > 1e-3
        quantizer.set_grid(torch.tensor(1e-6), -3.0, 7)
        StepFloor(net, 1.0).hold()
    torch.testing.assert_close(quantizer.step.detach(), rows.abs().mean() / 3)


@pytest.mark.parametrize("kept", ["no floor", "fixed step", "frozen step"])
def test_what_is_left_alone(kept: str) -> None:
    net = squint.quantize(nn.Linear(6, 4), 3, None, None, first_last_bits=3, learn_range=kept != "fixed step")
    ((_, quantizer),) = quantized_layers(net)
    quantizer.step.requires_grad_(kept == "no floor")
    with torch.no_grad():
        quantizer.step.fill_(1e-6)
    StepFloor(net, 0.0 if kept == "no floor" else 1.5).hold()
    assert bool((quantizer.step == 1e-6).all())


@pytest.mark.parametrize("more", [{}, {"optimizer": "muon"}, {"cycles": 2, "average": 0.9}])
def test_training_drives_steps_below_zero_but_not_below_their_floor(more: dict[str, Any]) -> None:
    free, held = (ensemble(), ensemble())
    fit(free, toy_data(), config(**FAST, **more, step_floor=0.0))
    assert min(float(q.step.detach().min()) for _, q in quantized_layers(free)) < 0
    fit(held, toy_data(), config(**FAST, **more, step_floor=1.2))
    assert float(reaches(held).min()) >= 1.2 * (1 - 1e-5)


def test_a_training_that_goes_on_holds_the_steps_as_one_that_never_stopped(tmp_path: Path) -> None:
    settings = config(**FAST, average=0.9)
    whole, stopped = ensemble(), ensemble()
    fit(whole, toy_data(), settings)
    with pytest.raises(TrainingStopped):
        fit(stopped, toy_data(), settings, checkpoint=tmp_path / "c", watcher=stopping_at(25))
    again = ensemble()
    fit(again, toy_data(), settings, checkpoint=tmp_path / "c")
    assert same(whole, again)


def test_a_checkpoint_from_before_the_floor_goes_on_without_one_alone(tmp_path: Path) -> None:
    file = tmp_path / "c"
    fit(ensemble(), toy_data(), config(epochs=1, step_floor=0.0), checkpoint=file)
    tensors, metadata = read_tensors(file)
    header = json.loads(metadata["squint_checkpoint"])
    del header["recipe"]["step_floor"]
    write_tensors(file, tensors, {"squint_checkpoint": json.dumps(header)})
    with pytest.raises(InputError, match=r"step_floor was 0.0, is 1.5; train as before, or remove the file"):
        fit(ensemble(), toy_data(), config(epochs=1), checkpoint=file)
    fit(ensemble(), toy_data(), config(epochs=1, step_floor=0.0), checkpoint=file)
