"""All pairs at once against one pair at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError
from squint.information import (
    conditional_redundancy,
    kernel,
    pairwise_information,
    redundancy,
    renyi_conditional_mutual_information,
    renyi_mutual_information,
)
from squint.information.kernel import squared_distances


def members(widths: list[int], n: int = 24, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    common = torch.randn(n, 1, dtype=dtype, generator=generator)
    return [
        (torch.randn(n, width, dtype=dtype, generator=generator) + common).requires_grad_()
        for width in widths
    ]


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("widths", [[3, 3, 3], [2, 5, 1, 3]])
@pytest.mark.parametrize("bandwidth", ["median", "neighbours", 1.7])
def test_every_entry_is_the_pairs_own_information(
    widths: list[int], alpha: float, bandwidth: float | str
) -> None:
    zs, y = members(widths), torch.arange(24) % 4
    result = pairwise_information(zs, y, alpha=alpha, bandwidth=bandwidth)
    assert result.conditional is not None
    total = known = 0.0
    for i, j in itertools.product(range(len(zs)), repeat=2):
        plain = renyi_mutual_information(zs[i], zs[j], alpha=alpha, bandwidth=bandwidth).item()
        given = renyi_conditional_mutual_information(zs[i], zs[j], y, alpha=alpha, bandwidth=bandwidth).item()
        assert result.redundancy[i, j].item() == pytest.approx(plain, abs=1e-10)
        assert result.conditional[i, j].item() == pytest.approx(given, abs=1e-10)
        total, known = (total + plain, known + given) if i < j else (total, known)
    assert redundancy(zs, alpha=alpha, bandwidth=bandwidth).item() == pytest.approx(total, abs=1e-10)
    value = conditional_redundancy(zs, y, alpha=alpha, bandwidth=bandwidth)
    assert value.item() == pytest.approx(known, abs=1e-10)


def test_gradients_are_those_of_the_sum_over_pairs() -> None:
    zs, y = members([3, 2, 4]), torch.arange(24) % 3
    together = torch.autograd.grad(redundancy(zs) + conditional_redundancy(zs, y), zs)
    one_by_one = torch.stack(
        [
            renyi_mutual_information(a, b) + renyi_conditional_mutual_information(a, b, y)
            for a, b in itertools.combinations(zs, 2)
        ]
    ).sum()
    for left, right in zip(together, torch.autograd.grad(one_by_one, zs), strict=True):
        assert torch.allclose(left, right, atol=1e-12)
        assert float(left.abs().max()) > 1e-5


@pytest.mark.parametrize("widths", [[3, 3, 3], [2, 5, 3]])
def test_distances_are_computed_once_per_member(widths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    zs, y = members(widths), torch.arange(24) % 4
    expected = [redundancy(zs).item(), conditional_redundancy(zs, y).item()]
    rows = 0

    def counted(z: Tensor) -> Tensor:
        nonlocal rows
        rows += len(z) if z.ndim == 3 else 1
        return squared_distances(z)

    monkeypatch.setattr(kernel, "squared_distances", counted)
    found = pairwise_information(zs, y)
    assert rows == len(widths)
    assert found.conditional is not None
    sums = [matrix.triu(1).sum().item() for matrix in (found.redundancy, found.conditional)]
    assert sums == pytest.approx(expected, abs=1e-12)


def test_float32_agrees_with_float64_at_training_size() -> None:
    narrow = members([256] * 4, n=256, dtype=torch.float32)
    narrow = [torch.nn.functional.normalize(z, dim=1) for z in narrow]
    wide = [z.double() for z in narrow]
    y = torch.arange(256) % 10
    # Sums of 65,536 positive terms in float32: relative rounding of about 1e-6 for each of three logarithms.
    assert redundancy(narrow).item() == pytest.approx(redundancy(wide).item(), abs=6 * 1e-5)
    assert conditional_redundancy(narrow, y).item() == pytest.approx(
        conditional_redundancy(wide, y).item(), abs=6 * 1e-5
    )


def test_without_labels_there_is_no_conditional_part() -> None:
    assert pairwise_information(members([2, 2])).conditional is None


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_one_member_one_row_and_lone_labels_give_zero(alpha: float) -> None:
    y = torch.arange(24)
    assert redundancy(members([3]), alpha=alpha).item() == 0
    assert conditional_redundancy(members([3]), y, alpha=alpha).item() == 0
    zs = members([3, 3])
    lone = conditional_redundancy(zs, y, alpha=alpha)
    assert abs(lone.item()) < 1e-12
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(lone, zs))
    assert abs(redundancy([z[:1] for z in zs], alpha=alpha).item()) < 1e-12


def test_bad_arguments_are_named() -> None:
    zs = members([3, 3])
    with pytest.raises(InputError, match=r"features\[1\] contains NaN"):
        redundancy([zs[0], zs[1] * math.nan])
    with pytest.raises(InputError, match=r"features\[1\] has 5 rows"):
        redundancy([zs[0], zs[1][:5]])
    with pytest.raises(InputTypeError, match="features must be"):
        redundancy(zs[0])  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="features must be"):
        redundancy([])
    with pytest.raises(InputError, match="alpha is 0"):
        redundancy(zs, alpha=0)
    with pytest.raises(InputError, match="y has shape"):
        conditional_redundancy(zs, torch.zeros(3, dtype=torch.long))
