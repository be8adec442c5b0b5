"""Stratified noise: which stratum each draw takes at each element, and its noise squeezed into it.

Sorting a few keys per element is most of what stratified noise costs. torch sorts along a dimension element
by element; here a network of comparators sorts all elements of a piece at once (Batcher 1968).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

_MOST = 64
"""Longest network: beyond it torch's own sort is as fast."""

_PIECE = 2**16
"""Keys of one piece, which stay in the second-level cache."""


def squeeze(k: Tensor, keys: Tensor, strata: Sequence[int]) -> Tensor:
    """Return noise u = (pi(s) + v)/N as 16-bit integers, pi a permutation of the N strata per element.

    Args:
        k: int16 noise v (draws, ...) in -2^15 .. 2^15-1, contiguous.
        keys: random int64 (N, ...), contiguous; their order is the permutation. Written over.
        strata: each draw's place s among the N.
    """
    total = len(keys)
    rows, found = keys.view(total, -1), torch.empty_like(k)
    noise, out = k.view(len(strata), -1), found.view(len(strata), -1)
    by_network = keys.device.type == "cpu" and total <= _MOST
    width = max(1, _PIECE // total) if by_network else rows.shape[1]
    for start in range(0, rows.shape[1], width):
        part = rows[:, start : start + width]
        order = _order(part) if by_network else list(part.argsort(0))
        for draw, place in enumerate(strata):
            u = order[place].to(torch.float32)
            # Up to the division all of it is exact in float32.
            u.mul_(2.0**16).add_(noise[draw, start : start + width]).add_(2**15 + 0.5)
            u.div_(total).sub_(2**15).floor_().clamp_(-(2**15), 2**15 - 1)
            out[draw, start : start + width] = u
    return found


def _order(keys: Tensor) -> list[Tensor]:
    """Return, as rows, which of the keys (N, n) is the smallest, the second smallest and so on; N up to 64.

    The lowest six bits of a key give way to its place: two keys are told apart by their upper 58 bits.
    """
    places = torch.arange(len(keys), device=keys.device).unsqueeze(1)
    rows = list((keys & -_MOST).add_(places).unbind(0))
    spare = torch.empty_like(rows[0])
    for i, j in _network(len(rows)):
        torch.minimum(rows[i], rows[j], out=spare)
        torch.maximum(rows[i], rows[j], out=rows[j])
        rows[i], spare = spare, rows[i]
    return [row.bitwise_and_(_MOST - 1) for row in rows]


@functools.cache
def _network(count: int) -> tuple[tuple[int, int], ...]:
    """Return Batcher's odd-even merge sort of `count` values as comparators (i, j), i < j.

    The network of the next power of two, less what touches the values that are not there.
    """
    pairs: list[tuple[int, int]] = []
    p = 1
    while p < count:
        k = p
        while k >= 1:
            for j in range(k % p, count - k, 2 * k):
                block = range(j, min(j + k, count - k))
                pairs.extend((i, i + k) for i in block if i // (2 * p) == (i + k) // (2 * p))
            k //= 2
        p *= 2
    return tuple(pairs)
