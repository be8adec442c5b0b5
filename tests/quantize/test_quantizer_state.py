"""The quantizer as a module: number types, copies and states, helpers, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squint._checks import InputError
from squint._random import noise
from squint.quantize import StochasticQuantizer, quantizers, set_gradient, set_rounding
from squint.quantize import functional as Q
from tests.quantize.nets import distinct


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(quantizer: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    with noise(generator(seed)):
        y: Tensor = quantizer(x)
    return y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", Q.NOISES)
def test_every_float_type_gives_its_own_type_back_on_the_same_grid(dtype: torch.dtype, family: str) -> None:
    q = StochasticQuantizer(4, -1.0, 2.0, noise=family)
    x = torch.linspace(-1.5, 2.5, 64).to(dtype).requires_grad_()
    y = run(q, x)
    assert y.dtype == dtype
    levels = -1 + 0.2 * torch.arange(16, dtype=torch.float64)
    distance = (y.detach().double()[:, None] - levels).abs().amin(1)
    assert float(distance.max()) <= 2 * torch.finfo(dtype).eps + 1e-6
    # Arithmetic is that of float32: a half-precision input gives what its float32 copy gives.
    if dtype != torch.float64:
        assert torch.equal(y, run(q, x.detach().float()).to(dtype))
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_a_network_in_half_precision_keeps_its_grid() -> None:
    q = StochasticQuantizer(8, learn_range=True, learn_width=True)
    step = q.step.detach().clone()
    for half in (q.bfloat16(), q.half()):
        assert half.step.dtype == torch.float32
        assert isinstance(half.step, nn.Parameter)
        assert torch.equal(half.step, step)
        assert half(torch.ones(1, dtype=torch.bfloat16)).tolist() == [1.0]
    assert q.double().step.dtype == torch.float64
    assert q.float().step.dtype == torch.float32
    assert q.to("meta").step.is_meta


@pytest.mark.parametrize("learn", [True, False])
def test_copies_and_restored_states_act_alike(learn: bool) -> None:
    q = StochasticQuantizer(3, width=0.75, learn_range=learn, learn_width=learn)
    q.set_grid(torch.tensor([[0.1], [0.3]]), -3, 7)
    x = torch.randn(6, 2, 9, generator=generator())
    y = run(q, x)
    twin = copy.deepcopy(q)
    assert torch.equal(run(twin, x), y)
    with torch.no_grad():
        twin.step.mul_(2)
    assert torch.equal(run(q, x), y)
    assert not torch.equal(run(twin, x), y)
    fresh = StochasticQuantizer(3, learn_range=learn, learn_width=learn)
    fresh.load_state_dict(q.state_dict())
    assert fresh.levels == 7
    assert isinstance(fresh.step, nn.Parameter) == learn
    assert torch.equal(run(fresh, x), y)


def test_numbers_kept_in_python_follow_every_write() -> None:
    q = StochasticQuantizer(2, width=0.0)
    x = torch.full((200,), 0.4)
    assert distinct(run(q, x)) == 1
    q.width.fill_(1.0)
    assert q.stochastic
    assert distinct(run(q, x)) == 2
    q.load_state_dict(StochasticQuantizer(2, width=0.0).state_dict())
    assert distinct(run(q, x)) == 1
    q.calibrated.fill_(False)
    with pytest.raises(InputError, match="calibrate"):
        q(x)
    with torch.inference_mode():
        made = StochasticQuantizer(2)
        assert distinct(run(made, x)) == 2


def test_helpers_reach_the_quantizers_inside_any_module_once() -> None:
    shared = StochasticQuantizer(2)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, StochasticQuantizer(3))})

    odd = Odd()
    assert [q.bits for q in quantizers(odd)] == [2, 3]
    set_rounding(odd, "nearest")
    set_gradient(odd, "identity")
    assert {q.rounding for q in quantizers(odd)} == {"nearest"}
    assert {q.gradient for q in quantizers(odd)} == {"identity"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "bits is 0"),
        ({"bits": 9}, "1..8"),
        ({"bits": 2.5}, "1..8"),
        ({"bits": True}, "1..8"),
        ({"low": 1.0, "high": 1.0}, "high is 1.0"),
        ({"low": float("nan")}, "low is nan"),
        ({"high": float("inf")}, "high is inf"),
        ({"noise": "uniforn"}, "did you mean 'uniform'"),
        ({"width": -0.1}, "width is -0.1"),
        ({"width": 1e-38}, r"width is 1e-38; allowed: 0 \(no noise\), or a number from 9\.53"),
        ({"granularity": "pixel"}, "granularity is 'pixel'"),
        ({"gradient": "ste"}, "straight_through"),
        ({"width": 0.1, "learn_width": True}, "0.25"),
    ],
)
def test_bad_settings_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        StochasticQuantizer(**{"bits": 4, **arguments})
    assert "\n" not in str(caught.value)


def test_bad_values_and_modes_are_refused() -> None:
    q = StochasticQuantizer(4)
    with pytest.raises(InputError, match="values of dtype"):
        q(torch.arange(3))
    with pytest.raises(InputError, match="step is 0"):
        q.set_grid(torch.tensor(0.0), 0, 16)
    with pytest.raises(InputError, match="rounding is 'floor'"):
        set_rounding(q, "floor")
    with pytest.raises(InputError, match="gradient is 'exact'"):
        set_gradient(q, "exact")
    assert "bits=4, levels=16" in repr(q)
