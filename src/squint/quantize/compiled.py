"""The passes of deterministic quantizers as compiled kernels, for training on the CPU.

One kernel reads the values once and writes the result once, where the chain of torch operations of
`StochasticRound` goes over memory ten times. Forward results are the chain's to the bit; sums are added up in
another order. torch compiles the kernels, once per kind of call (some seconds), with the machine's compiler.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from squint._checks import InputError
from squint.quantize.blocked import Sums
from squint.quantize.functional import tolerance

_state = {"on": False}


@contextlib.contextmanager
def compiled_passes(on: bool = True) -> Iterator[None]:
    """Within this context, quantizers without noise on the CPU use compiled kernels; leaves it as it was.

    Raises:
        squint.InputError: torch cannot compile here.
    """
    if on:
        _try_out()
    before, _state["on"] = _state["on"], on
    try:
        yield
    finally:
        _state["on"] = before


def _try_out() -> None:
    """Make one small kernel, so that a machine without a compiler says so before any work is done."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own modules
            round_to_grid(torch.zeros(2, 2), torch.tensor(0.0), torch.tensor(1.0), 2)
    except Exception as error:  # torch raises what its compiler, its cache or the system raised
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            f"train.compile is true, and torch cannot compile here ({' '.join(reason)}); "
            "allowed: false, or true where a C++ compiler and Python's headers are installed"
        ) from None


def applies(x: Tensor, step: Tensor, k: Tensor | None) -> bool:
    """Return whether x goes through a compiled kernel: asked for, on the CPU, no noise, rows of one step."""
    return (
        _state["on"]
        and k is None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and step.dtype == torch.float32
        and rows(x, step) is not None
    )


def rows(x: Tensor, step: Tensor) -> Tensor | None:
    """Return a dense tensor's elements, one row per step, in the order of memory; None where they are not."""
    count = step.numel()
    if count > 1:
        # A step of shape (C, 1, 1, 1) beside values of shape (C, ...) or (1, C, ...).
        lead = x.ndim - step.ndim
        if step.shape[0] != count or lead < 0 or x.shape[: lead + 1].numel() != count:
            return None
        x = x.reshape(x.shape[lead:]) if lead else x
    elif x.ndim != 4 and not x.is_contiguous():
        return None
    if x.is_contiguous():
        return x.view(count, -1)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(count, -1)
    return None


def round_to_grid(x: Tensor, low: Tensor, step: Tensor, levels: int) -> Tensor:
    """Return x rounded to the grid, of its dtype and memory layout."""
    given, *grid = _as_rows(x, low, step, levels)
    return _like(_run(_round, given, *grid), x)


def gradient(grad: Tensor, x: Tensor, low: Tensor, step: Tensor, levels: int) -> tuple[Tensor, Sums]:
    """Return g D and the sums that the parameters' gradients are made of, shaped as the step is."""
    given, *grid = _as_rows(x, low, step, levels)
    # The gradient may come in another memory layout than the values.
    if grad.stride() != x.stride():
        grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
    held = rows(grad, step)
    assert held is not None
    by_x, *sums = _run(_gradient, held, given, *grid, torch.tensor(tolerance(levels)))
    total, masked, position, level = (values.view(step.shape) for values in sums)
    return _like(by_x, x), Sums(total, masked, position, level, None)


def _as_rows(x: Tensor, low: Tensor, step: Tensor, levels: int) -> tuple[Tensor, ...]:
    given = rows(x, step)
    assert given is not None
    # Numbers would be compiled in, and every grid would have kernels of its own.
    wide = (low.detach().expand_as(step), step.detach())
    return given, *(values.reshape(-1, 1) for values in wide), torch.tensor(float(levels - 1))


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.as_strided(x.shape, x.stride())


def _round(x: Tensor, low: Tensor, step: Tensor, top: Tensor) -> Tensor:
    return (_level((x.float() - low) / step, top) * step + low).to(x.dtype)


def _gradient(
    grad: Tensor, x: Tensor, low: Tensor, step: Tensor, top: Tensor, slack: Tensor
) -> tuple[Tensor, ...]:
    g, u = grad.float(), (x.float() - low) / step
    half = top / 2
    masked = torch.where((u - half).abs() <= half + slack, g, torch.zeros_like(g))
    sums = (g, masked, masked * u, g * _level(u, top))
    return masked.to(x.dtype), *(values.sum(1) for values in sums)


def _level(u: Tensor, top: Tensor) -> Tensor:
    return torch.minimum((u - 0.5).ceil().clamp_min(0), top)


_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def _run(function: Callable[..., Any], *given: Tensor) -> Any:
    """Run the compiled form of a function, made at its first use.

    torch makes another kernel for whatever differs between calls, and gives up after a few. All is alike in
    every call but dtypes and whether there are many rows: no gradient, no autocast, no flag on a tensor.
    """
    if function not in _compiled:
        _compiled[function] = torch.compile(function, dynamic=True)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return _compiled[function](*(values.detach() for values in given))
