"""The GPU's kernels give what the plain chain gives: on a CPU under Triton's interpreter, or on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from squint._random import noise
from squint.quantize import StochasticQuantizer, blocked, fused
from tests.gpu_kernels import DEVICE
from tests.quantize.nets import through


@pytest.fixture(autouse=True)
def _on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "on_device", lambda _: True)
    monkeypatch.setattr(blocked, "applies", lambda *_: False)


def _agree(monkeypatch: pytest.MonkeyPatch, quantizer: StochasticQuantizer, x: Tensor, grad: Tensor) -> None:
    used: set[str] = set()

    def noted(name: str) -> None:
        whole = getattr(fused, name)

        def run(*args: Any, **options: Any) -> Any:
            used.add(name)
            return whole(*args, **options)

        monkeypatch.setattr(fused, name, run)

    noted("round_to_grid")
    noted("gradient")
    found = through(quantizer, x, grad)
    assert used == {"round_to_grid", "gradient"}
    monkeypatch.setattr(fused, "applies", lambda *_: False)
    plain = through(quantizer, x, grad)
    # Triton's interpreter cuts the digits that bfloat16 does not have off, where a GPU rounds.
    cut = 2**-7 if x.dtype == torch.bfloat16 and DEVICE.type == "cpu" else 0.0
    torch.testing.assert_close(found[0], plain[0], rtol=cut, atol=0)
    assert found[0].stride() == plain[0].stride()
    assert torch.equal(found[1], plain[1])
    for ours, theirs in zip(found[2], plain[2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [0.0, 1.0])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_one_pass_agrees_with_the_plain_chain(
    monkeypatch: pytest.MonkeyPatch,
    layout: torch.memory_format,
    dtype: torch.dtype,
    width: float,
    signed: bool,
    learns: bool,
) -> None:
    # More than one block, the last one not full.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 6, 9, 7), generator=generator).to(DEVICE, dtype).contiguous(memory_format=layout)
    grad = torch.randn((4, 6, 9, 7), generator=generator).to(DEVICE, dtype).contiguous(memory_format=layout)
    quantizer = StochasticQuantizer(3, width=width, learn_range=learns).to(DEVICE)
    if signed:
        quantizer.set_grid(torch.tensor(0.37), -4, 8)
    _agree(monkeypatch, quantizer, x, grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [0.0, 1.0])
def test_weights_have_a_step_for_every_channel(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, width: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((5, 130, 3, 3), generator=generator).to(DEVICE).contiguous(memory_format=layout)
    if width:
        weight = weight.contiguous()
    grad = torch.randn(weight.shape, generator=generator).to(DEVICE)
    quantizer = StochasticQuantizer(2, width=width, learn_range=True, gradient="straight_through").to(DEVICE)
    quantizer.set_grid(torch.rand(5, 1, 1, 1, generator=generator).add(0.2), -1, 3)
    _agree(monkeypatch, quantizer, weight.expand(1, *weight.shape), grad.expand(1, *grad.shape))


def test_fine_grids_use_the_noise_that_keeps_grid_points(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = StochasticQuantizer(8, width=1.0).to(DEVICE)
    x = torch.arange(256, device=DEVICE).div(255).repeat(9)
    _agree(monkeypatch, quantizer, x, torch.ones_like(x))
    with noise(torch.Generator().manual_seed(5)):
        torch.testing.assert_close(quantizer(x), x, rtol=0, atol=1e-6)


def test_nan_and_values_beyond_the_range() -> None:
    quantizer = StochasticQuantizer(2, width=0.0).to(DEVICE)
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -3.0, 0.6, 7.0], device=DEVICE)
    y = quantizer(x)
    assert y.isnan().tolist() == [True, False, False, False, False, False]
    assert y[1:].tolist() == pytest.approx([1.0, 0.0, 0.0, 2 / 3, 1.0], abs=1e-6)


def test_what_the_kernels_do_not_cover_is_left_to_the_plain_chain() -> None:
    one, levels = torch.tensor(0.5, device=DEVICE), 4
    plain = fused.Pass(torch.zeros_like(one), one, None, 0.0, levels, True)
    x = torch.rand(2, 3, 8, 8, device=DEVICE)
    assert fused.applies(x, plain, "uniform")
    assert not fused.applies(x.double(), plain, "uniform")
    assert not fused.applies(x[..., ::2], plain, "uniform")
    assert not fused.applies(x[:0], plain, "uniform")
    assert not fused.applies(x, plain._replace(step=torch.rand(3, 1, 1, device=DEVICE)), "uniform")
    assert not fused.applies(x, plain._replace(from_zero=False, low=torch.zeros(1, device=DEVICE)), "uniform")
    k = torch.zeros(x.shape, dtype=torch.int16, device=DEVICE)
    assert fused.applies(x, plain._replace(k=k), "uniform")
    assert not fused.applies(x, plain._replace(k=k), "logistic")
    assert not fused.applies(x, plain._replace(k=k[:, :1]), "uniform")


def test_a_second_derivative_still_passes() -> None:
    x = torch.rand(1, 1, 40, 40, device=DEVICE, requires_grad=True)
    quantizer = StochasticQuantizer(2, width=1.0).to(DEVICE)
    (first,) = torch.autograd.grad((quantizer(x) * x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(second, torch.full_like(second, 2.0))
