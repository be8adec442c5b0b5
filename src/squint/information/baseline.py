"""What a reported information must carry: a shuffled-pair baseline and an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_labels, check_number
from squint.information._inputs import check_equal_lengths


class Baseline(NamedTuple):
    """What an estimator says of variables that share nothing, in nats.

    Attributes:
        mean: over shuffles; subtract it from the estimate.
        deviation: standard deviation of one shuffle's value.
    """

    mean: float
    deviation: float


@torch.no_grad()
def shuffled_baseline(
    estimator: Callable[[Tensor, Tensor], Tensor | float],
    z1: Tensor,
    z2: Tensor,
    *,
    generator: torch.Generator,
    repeats: int = 20,
    y: Tensor | None = None,
) -> Baseline:
    """Return the estimator's mean and deviation over random re-pairings of the rows.

    Shuffling keeps both marginals and removes all dependence, so the mean is the estimator's bias at zero
    information for this n. With labels, rows are re-paired within their class, which keeps what both share
    with the class: the baseline of information conditional on `y`.

    Args:
        estimator: maps both tensors to a number.
        z1: (n, ...), left as it is.
        z2: (n, ...), its rows shuffled.
        generator: CPU generator of the shuffles.
        repeats: shuffles, 2 or more.
        y: labels (n,), or None.

    Raises:
        InputError: lengths differ, labels are bad, `repeats` is below 2, or the estimator's value is not
            finite.
        InputTypeError: no tensors, or an estimator that returns no number.
    """
    _check_rows(("z1", "z2"), (z1, z2))
    check_number("repeats", repeats, 2, whole=True)
    n = z1.shape[0]
    if y is not None:
        check_labels(y, n, name="y")
    values = []
    for _ in range(repeats):
        order = torch.randperm(n, generator=generator).to(z2.device)
        if y is not None:
            # Rows in class order, and the same rows shuffled and then brought into class order.
            shuffled = order[y[order].argsort(stable=True)]
            order = torch.empty_like(order).index_copy(0, y.argsort(stable=True), shuffled)
        values.append(_value(estimator(z1, z2[order])))
    mean = math.fsum(values) / repeats
    return Baseline(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (repeats - 1)))


@torch.no_grad()
def bootstrap_interval(
    estimator: Callable[..., Tensor | float],
    *tensors: Tensor,
    generator: torch.Generator,
    repeats: int = 200,
    level: float = 0.95,
    replacement: bool = True,
) -> tuple[float, float]:
    """Return (low, high), an interval in nats for the estimator's expectation at this n.

    Rows of all tensors are resampled together. The resampled values' quantiles are moved so that their mean
    falls on the estimate: resampling adds bias of its own to an information, and only its spread is wanted.
    The interval says nothing of the estimator's bias.

    Args:
        estimator: maps the tensors to a number.
        tensors: (n, ...), all of the same length.
        generator: CPU generator of the samples.
        repeats: samples.
        level: confidence, between 0 and 1.
        replacement: True draws n of n rows with replacement. False draws half the rows without, whose spread
            around the full estimate is the same to first order: for nearest-neighbour and kernel estimators,
            which take repeated rows for dependence.

    Raises:
        InputError: no tensors, lengths that differ, fewer than 2 rows or repeats, a level outside (0, 1), or
            a value of the estimator that is not finite.
        InputTypeError: something that is no tensor, or an estimator that returns no number.
    """
    if not tensors:
        raise InputError("tensors is empty; allowed: one tensor or more")
    _check_rows([f"tensors[{i}]" for i in range(len(tensors))], tensors)
    check_number("repeats", repeats, 2, whole=True)
    check_number("level", level, 0.0, 1.0, open_low=True)
    if level == 1:
        raise InputError(f"level is {level!r}; allowed: a number in (0, 1)")
    n = tensors[0].shape[0]
    if n < 2:
        raise InputError(f"tensors[0] has {n} rows; allowed: 2 or more")
    values = torch.empty(repeats, dtype=torch.float64)
    for index in range(repeats):
        if replacement:
            rows = torch.randint(n, (n,), generator=generator)
        else:
            rows = torch.randperm(n, generator=generator)[: (n + 1) // 2]
        values[index] = _value(estimator(*(t[rows.to(t.device)] for t in tensors)))
    estimate = _value(estimator(*tensors))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (estimate + values.quantile(tails) - values.mean()).tolist()
    return float(low), float(high)


def _check_rows(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise InputError(f"{name} has shape {tuple(tensor.shape)}; allowed: a non-empty (n, ...) tensor")
    check_equal_lengths(names, tensors)


def _value(found: object) -> float:
    """Return what an estimator said as a number; a single NaN would spoil every figure made of it."""
    number = isinstance(found, int | float) or (isinstance(found, Tensor) and found.numel() == 1)
    if not number:
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise InputTypeError(f"estimator returned a {type(found).__name__}{shape}; needed: one number")
    value = float(found)  # type: ignore[arg-type]
    if not math.isfinite(value):
        raise InputError(f"estimator returned {value}; needed: a finite number")
    return value
