"""Strata: the network sorts, and noise squeezed into its stratum is what a plain sort gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from squint import _strata


def plainly(k: Tensor, keys: Tensor, strata: list[int]) -> Tensor:
    rank = keys.argsort(0)[strata]
    u = (rank + (k.to(torch.int32) + 2**15 + 0.5) / 2**16) / len(keys)
    return (u * 2**16 - 2**15).floor().clamp_(-(2**15), 2**15 - 1).to(torch.int16)


@pytest.mark.parametrize("total", [1, 2, 3, 8, 13, 20, 64, 65])
def test_noise_is_that_of_a_plain_sort(total: int) -> None:
    generator = torch.Generator().manual_seed(total)
    strata = list(range(total))[::-2]
    # More elements than one piece holds, and not a whole number of pieces.
    shape = (2**16 // total + 5, 3)
    keys = torch.empty((total, *shape), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    k = torch.randint(-(2**15), 2**15, (len(strata), *shape), generator=generator).to(torch.int16)
    expected = plainly(k, keys, strata)
    assert torch.equal(_strata.squeeze(k, keys, strata), expected)


@pytest.mark.parametrize("count", range(1, 13))
def test_the_network_sorts_whatever_there_is(count: int) -> None:
    # A network that sorts every sequence of zeros and ones sorts every sequence (Knuth 1998, 5.3.4).
    for values in itertools.product((0, 1), repeat=count):
        row = list(values)
        for i, j in _strata._network(count):
            row[i], row[j] = min(row[i], row[j]), max(row[i], row[j])
        assert row == sorted(values)
