"""Predictive information against two-point draws and its entropy form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError
from squint.information import predictive_information


def logits(draws: int, members: int, batch: int = 5, classes: int = 4, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(draws, members, batch, classes, dtype=torch.float64, generator=generator)


def entropy(p: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(p)
    return terms.sum(-1)


def test_parts_are_differences_of_entropies_and_add_up() -> None:
    z = logits(6, 3)
    p = z.softmax(-1)
    parts = predictive_information(z)
    mean, member = p.mean((0, 1)), p.mean(0)
    assert torch.allclose(parts.total, entropy(mean) - entropy(p).mean((0, 1)), atol=1e-12)
    assert torch.allclose(parts.across_members, entropy(mean) - entropy(member).mean(0), atol=1e-12)
    assert torch.allclose(parts.across_draws, (entropy(member) - entropy(p).mean(0)).mean(0), atol=1e-12)
    assert torch.allclose(parts.total, parts.across_members + parts.across_draws, atol=1e-14)


def test_two_draws_that_disagree_are_a_binary_channel() -> None:
    e = 0.1
    p = torch.tensor([[1 - e, e], [e, 1 - e]], dtype=torch.float64)
    expected = math.log(2) + e * math.log(e) + (1 - e) * math.log(1 - e)
    draws = predictive_information(p.log().view(2, 1, 1, 2))
    assert float(draws.across_draws) == pytest.approx(expected, abs=1e-12)
    assert abs(float(draws.across_members)) < 1e-15
    members = predictive_information(p.log().view(1, 2, 1, 2))
    assert float(members.across_members) == pytest.approx(expected, abs=1e-12)
    assert abs(float(members.across_draws)) < 1e-15


def test_certain_disagreement_is_log_two_even_with_infinite_logits() -> None:
    z = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]).view(2, 1, 1, 2).requires_grad_()
    value = predictive_information(z).total
    assert value.item() == pytest.approx(math.log(2), abs=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert bool(torch.isfinite(gradient).all())


def test_agreement_is_zero_to_the_last_digit_of_confidence() -> None:
    z = torch.tensor([30.0, 0.0, 0.0]).expand(4, 2, 3, 3)
    assert float(predictive_information(z).total.abs().max()) < 1e-12


def test_logits_and_log_probabilities_are_the_same() -> None:
    z = logits(3, 2)
    assert torch.allclose(
        predictive_information(z).total, predictive_information(z.log_softmax(-1)).total, atol=1e-14
    )


def test_gradients_match_differences() -> None:
    z = logits(2, 2, batch=2, classes=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: predictive_information(x).total, z)


def test_half_precision_is_widened() -> None:
    z = logits(3, 2).to(torch.bfloat16)
    assert predictive_information(z).total.dtype == torch.float32


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(2, 3, 4), "logits has shape"),
        (torch.zeros(0, 1, 2, 3), "logits has shape"),
        (torch.zeros(1, 1, 2, 3, dtype=torch.long), "dtype torch.int64"),
        (torch.full((1, 1, 2, 3), math.nan), "logits contains NaN"),
        (torch.full((1, 1, 2, 3), math.inf), "logits contains NaN, infinity"),
        (torch.full((1, 1, 2, 3), -math.inf), "a row of −infinity"),
    ],
)
def test_bad_logits_are_named(z: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predictive_information(z)


def test_wrong_kinds_are_named() -> None:
    with pytest.raises(InputTypeError, match="logits must be"):
        predictive_information(None)  # type: ignore[arg-type]
