"""Means over pairs of members: all at once against one pair at a time."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from squint.evaluation.plane_estimators import ESTIMATORS


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_the_mean_over_pairs_is_that_of_every_pair_alone(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    members = [torch.randn(30, 5, generator=generator, dtype=torch.float64) + common for _ in range(4)]
    if ESTIMATORS[name].layer == "predictions":
        members = [member.softmax(1) for member in members]
    given = (torch.arange(30) % 3,) if ESTIMATORS[name].conditional else ()
    alone = [ESTIMATORS[name].pair(a, b, *given).item() for a, b in combinations(members, 2)]
    assert ESTIMATORS[name].mean(members, *given).item() == pytest.approx(sum(alone) / 6, abs=1e-12)
    assert max(alone) - min(alone) > 1e-4
