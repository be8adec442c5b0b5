"""Compiled kernels give what the plain chain gives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

import squint
from squint.quantize import StochasticQuantizer, blocked, compiled
from tests.quantize.nets import through

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def passes() -> Iterator[None]:
    with compiled.compiled_passes():
        yield


@needs_compiler
@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_kernels_agree_with_the_plain_chain(
    monkeypatch: pytest.MonkeyPatch,
    layout: torch.memory_format,
    dtype: torch.dtype,
    channels: bool,
    signed: bool,
    learns: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((6, 5, 9, 7), generator=generator).to(dtype).contiguous(memory_format=layout)
    grad = torch.randn((6, 5, 9, 7), generator=generator).to(dtype).contiguous(memory_format=layout)
    quantizer = StochasticQuantizer(3, width=0.0, learn_range=learns)
    step = torch.linspace(0.2, 0.7, 6).view(6, 1, 1, 1) if channels else torch.tensor(0.37)
    quantizer.set_grid(step, -4 if signed else 0, 8)
    assert compiled.applies(x, quantizer.step, None)
    found = through(quantizer, x, grad)
    monkeypatch.setattr(compiled, "applies", lambda *_: False)
    monkeypatch.setattr(blocked, "applies", lambda *_: False)
    plain = through(quantizer, x, grad)
    assert torch.equal(found[0], plain[0])
    assert found[0].stride() == x.stride()
    assert torch.equal(found[1], plain[1])
    assert len(found[2]) == len(plain[2]) == int(learns)
    # Sums of about 1,500 terms of order one in another order.
    torch.testing.assert_close(found[2], plain[2], rtol=1e-4, atol=2e-3)


@needs_compiler
@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("step", [torch.tensor(0.4), torch.tensor([0.4, 0.3]).view(2, 1, 1, 1)])
def test_a_second_derivative_still_passes(step: torch.Tensor) -> None:
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    quantizer = StochasticQuantizer(2, width=0.0, learn_range=True)
    quantizer.set_grid(step, 0, 4)
    (first,) = torch.autograd.grad((quantizer(x) * x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    # d/dx [y + x D] with D = 1 and y's surrogate slope 1: 2 inside the range, which ends at 0.9 or above.
    assert torch.equal(second[0], torch.full_like(second[0], 2.0))


def test_noise_gaps_and_other_types_are_left_to_the_plain_chain() -> None:
    step = torch.tensor(0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compiled._state, "on", True)
        assert compiled.applies(torch.rand(2, 3), step, None)
        assert not compiled.applies(torch.rand(2, 3), step, torch.zeros(2, 3, dtype=torch.int16))
        assert not compiled.applies(torch.rand(2, 3).double(), step, None)
        assert not compiled.applies(torch.rand(2, 6)[:, ::2], step, None)
        assert not compiled.applies(torch.rand(2, 3), step.expand(3, 1), None)
    assert not compiled.applies(torch.rand(2, 3), step, None)


def test_a_machine_that_cannot_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(compiled, "round_to_grid", fails)
    with (
        pytest.raises(squint.InputError, match=r"^train\.compile .* \(no compiler\); allowed: false"),
        compiled.compiled_passes(),
    ):
        pass
    assert not compiled._state["on"]
