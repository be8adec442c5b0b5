"""The processes of one job (ranks): how many there are, and what they tell each other.

Every function here is called by all processes alike, in the same order; alone, a process talks to nobody and
nothing is computed. The group itself is made by lightning-fabric, see `squint.training.launching`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from squint._checks import InputError

PATIENCE = timedelta(seconds=45)
"""How long training waits for a process that is silent; one that died is noticed at once."""
_LONG = timedelta(days=7)

_T = TypeVar("_T")
_patient: dict[int, dist.ProcessGroup] = {}


class LostProcess(Exception):  # noqa: N818
    """Another process of the job has died or does not answer; what was saved can be continued."""


class FailedElsewhere(Exception):  # noqa: N818
    """The first process has met an error, which it reports itself."""


def count() -> int:
    """Return how many processes work together; 1 before they were brought together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's place, from 0; before the processes were brought together, what it will be."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) if started() > 1 else 0


def started() -> int:
    """Return how many processes this job was started with, by torchrun or by squint itself; else 1."""
    if count() > 1:
        return count()
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


@contextmanager
def _contact() -> Iterator[None]:
    """Turn what the transport raises into one line that says what to do."""
    try:
        yield
    except RuntimeError as error:
        # The transport's own words without its sources, to the end of a sentence.
        reason = re.sub(r"\[\S+:\d+\] ", "", " ".join(str(error).split())).split(". ")[0][:200]
        raise LostProcess(
            f"process {rank()} of {count()} has lost contact with another one, which has died or does not "
            f"answer ({reason}); what was saved is kept: start all of them again with --resume"
        ) from error


class _Total(torch.autograd.Function):
    """Sum over processes; so is its gradient, of the sum of all processes' losses."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        out = x.detach().clone(memory_format=torch.contiguous_format)
        with _contact():
            dist.all_reduce(out)
        return out

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


def total(x: Tensor) -> Tensor:
    """Return the sum of `x` over the processes, differentiable any number of times.

    The gradient is that of the sum of all processes' losses; divided by their number, as training does with
    every gradient, it is that of the mean loss.
    """
    out: Tensor = _Total.apply(x) if count() > 1 else x  # type: ignore[no-untyped-call]
    return out


def gathered(x: Tensor) -> Tensor:
    """Return every process's `x`, (processes, *x.shape), differentiable; shapes must agree."""
    if count() == 1:
        return x.unsqueeze(0)
    # Others' places hold zeros, and adding zeros is exact.
    places = [x if place == rank() else torch.zeros_like(x) for place in range(count())]
    return total(torch.stack(places))


def joined(x: Tensor) -> Tensor:
    """Return the whole batch (batch, ...) of which every process has a part, in the processes' order."""
    return x if count() == 1 else gathered(x).flatten(0, 1)


def mean(x: Tensor) -> Tensor:
    """Return the mean of `x` over the processes, without gradient."""
    return total(x.detach()) / count()


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in one process or more."""
    return flag if count() == 1 else bool(total(torch.tensor(float(flag))) > 0)


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replace every parameter's gradient by its mean over the processes."""
    if count() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for dtype in dict.fromkeys(g.dtype for g in gradients):
        own = [g for g in gradients if g.dtype == dtype]
        flat = total(torch.cat([g.reshape(-1) for g in own])) / count()
        for g, part in zip(own, torch.split(flat, [g.numel() for g in own]), strict=True):
            g.copy_(part.view_as(g))


@torch.no_grad()
def share_state(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if count() == 1:
        return
    for tensor in module.state_dict().values():
        held = tensor.contiguous()
        with _contact():
            dist.broadcast(held, 0)
        tensor.copy_(held)


def first(call: Callable[[], _T]) -> _T:
    """Return what `call` returns in the first process, which alone runs it; the others wait, however long.

    Raises:
        FailedElsewhere: in the others, where it fails in the first, which raises its own error.
    """
    if count() == 1:
        return call()
    message: list[Any] = [None, False]
    if rank() == 0:
        try:
            message = [call(), True]
        finally:
            with _contact():
                dist.broadcast_object_list(message, 0, group=_patient_group())
    else:
        with _contact():
            dist.broadcast_object_list(message, 0, group=_patient_group())
        if not message[1]:
            raise FailedElsewhere
    value: _T = message[0]
    return value


def exchange(value: _T) -> list[_T]:
    """Return every process's value, in their order; waits for all of them, however long."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _contact():
        dist.all_gather_object(values, value, group=_patient_group())
    return values


def agreed(value: _T, what: str) -> _T:
    """Return a value that all processes must share.

    Raises:
        squint.InputError: they do not.
    """
    values = exchange(value)
    for place, other in enumerate(values):
        if other != values[0]:
            raise InputError(
                f"{what} is {values[0]!r} in process 0 and {other!r} in process {place}; needed: the same "
                "command, code and data on all machines, and run folders on a disk that they share"
            )
    return value


def leave() -> None:
    """Give up the groups, whose threads end before this returns; to be called as the process ends.

    A thread that still lets go of the tensors of its last sum while the interpreter shuts down would abort
    the process: its exit code would be that of a crash, whatever the command had returned.
    """
    _patient.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _patient_group() -> dist.ProcessGroup:
    """Return the group for waits of any length; made where it is first needed, by all processes."""
    world = id(dist.group.WORLD)
    if world not in _patient:
        _patient[world] = dist.new_group(backend="gloo", timeout=_LONG)
    return _patient[world]
