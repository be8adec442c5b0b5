"""Learning-rate schedules as pure functions of the step, so that a resumed training needs no state."""

from __future__ import annotations

import math

_RISE = 0.2
_START = 0.04


def cycle_length(total: int, cycles: int) -> int:
    """Return the steps of one cycle, of which the last one may lack some."""
    return math.ceil(total / cycles)


def learning_rate(step: int, total: int, schedule: str) -> float:
    """Return the share of the peak learning rate at `step` of `total`.

    "one_cycle" rises on a straight line over the first fifth and falls on a cosine (Smith 2018), "cosine"
    only falls (Loshchilov and Hutter 2017), "constant" stays.
    """
    if schedule == "constant" or total <= 1:
        return 1.0
    place = step / total
    if schedule == "one_cycle":
        if place < _RISE:
            return _START + (1 - _START) * place / _RISE
        place = (place - _RISE) / (1 - _RISE)
    return 0.5 * (1 + math.cos(math.pi * place))
