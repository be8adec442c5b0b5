"""Piece by piece gives what the plain chain gives."""

from __future__ import annotations

import pytest
import torch

from squint.quantize import StochasticQuantizer, blocked
from tests.quantize.nets import through

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_pieces_agree_with_the_plain_chain(
    monkeypatch: pytest.MonkeyPatch,
    layout: torch.memory_format,
    dtype: torch.dtype,
    width: float,
    signed: bool,
    learns: bool,
) -> None:
    # More than one piece, the last one not full; large enough for every layout to go piece by piece.
    monkeypatch.setattr(blocked, "PIECE", 1000)
    monkeypatch.setattr(blocked, "_LARGE", 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4, 6, 9, 7), generator=generator).to(dtype).contiguous(memory_format=layout)
    grad = torch.randn((4, 6, 9, 7), generator=generator).to(dtype).contiguous(memory_format=layout)
    quantizer = StochasticQuantizer(3, width=width, learn_range=learns)
    if signed:
        quantizer.set_grid(torch.tensor(0.37), -4, 8)
    found = through(quantizer, x, grad)
    monkeypatch.setattr(blocked, "applies", lambda *_: False)
    plain = through(quantizer, x, grad)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])
    assert len(found[2]) == len(plain[2]) == int(learns)
    # Sums of about 1,500 terms of order one in another order.
    torch.testing.assert_close(found[2], plain[2], rtol=1e-4, atol=2e-3)


def test_the_memory_format_is_kept() -> None:
    x = torch.rand(2, 3, 300, 300).contiguous(memory_format=torch.channels_last)
    quantizer = StochasticQuantizer(4, width=0.0)
    assert blocked.applies(x, quantizer.step, None)
    assert quantizer(x).is_contiguous(memory_format=torch.channels_last)


def test_gaps_in_memory_are_left_to_the_plain_chain() -> None:
    x = torch.rand(2, 3, 900, 1800)[..., ::2]
    assert not blocked.applies(x, torch.tensor(0.1), None)


def test_a_second_derivative_still_passes() -> None:
    x = torch.rand(1, 1, 1024, 1024, requires_grad=True)
    quantizer = StochasticQuantizer(2, width=1.0)
    assert blocked.applies(x, quantizer.step, None)
    (first,) = torch.autograd.grad((quantizer(x) * x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    # d/dx [y + x D] with D = 1 and y's surrogate slope 1: 2 everywhere.
    assert torch.equal(second, torch.full_like(second, 2.0))
