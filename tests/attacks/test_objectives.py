from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint.attacks.objectives import LOSSES, log_mean_probability, objective

Y = torch.tensor([0])
# Two units (draws) of one member with probabilities (½, ¼, ⅛, ⅛) and (⅛, ½, ¼, ⅛); mean (5, 6, 3, 2) / 16.
UNITS = torch.tensor([[4.0, 2.0, 1.0, 1.0], [1.0, 4.0, 2.0, 1.0]], dtype=torch.float64).log().view(2, 1, 1, 4)


def value(loss: str, logits: Tensor = UNITS, targets: int | None = None, temperature: float = 1.0) -> float:
    goal = torch.tensor([targets]) if targets is not None else None
    return float(objective(loss, Y, targets=goal, temperature=temperature)(logits))


@pytest.mark.parametrize(
    ("loss", "targets", "expected"),
    [
        ("ce", None, math.log(16 / 5)),
        ("ce", 1, math.log(6 / 16)),
        ("mean_ce", None, (math.log(2) + math.log(8)) / 2),
        ("mean_ce", 1, (math.log(1 / 4) + math.log(1 / 2)) / 2),
        ("margin", None, math.log(6 / 5)),
        ("margin", 2, math.log(3 / 5)),
        ("dlr", None, math.log(6 / 5) / math.log(6 / 3)),
        ("dlr", 2, math.log(3 / 5) / (math.log(6) - (math.log(3) + math.log(2)) / 2)),
        ("mean_logits_margin", None, math.log(8) / 2 - math.log(4) / 2),
        ("mean_logits_margin", 2, math.log(2) / 2 - math.log(4) / 2),
    ],
)
def test_losses_equal_values_worked_out_by_hand(loss: str, targets: int | None, expected: float) -> None:
    assert value(loss, targets=targets) == pytest.approx(expected, rel=1e-9)


def test_temperature_acts_inside_the_mean() -> None:
    # T = ½ squares the units' odds: (16, 4, 1, 1)/22 and (1, 16, 4, 1)/22.
    assert value("ce", temperature=0.5) == pytest.approx(math.log(44 / 17), rel=1e-12)
    assert value("margin", temperature=0.5) == pytest.approx(math.log(20 / 17), rel=1e-12)
    outside = (2 * log_mean_probability(UNITS)).log_softmax(-1)[0, 0]
    assert value("ce", temperature=0.5) != pytest.approx(-float(outside), rel=1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_elementwise_and_pool_all_leading_dimensions(
    loss: str, generator: torch.Generator
) -> None:
    z = torch.randn(3, 2, 5, 6, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 3, 4])
    whole = objective(loss, y)(z)
    assert whole.shape == (5,)
    alone = torch.cat([objective(loss, y[i : i + 1])(z[:, :, i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(whole, objective(loss, y)(z.flatten(0, 1)))


@pytest.mark.parametrize("confidence", [-600.0, -1.0, 0.0, 0.7, 5.0, 40.0])
@pytest.mark.parametrize("loss", ["ce", "mean_ce"])
def test_cross_entropy_is_exact_in_value_and_gradient_on_both_branches(loss: str, confidence: float) -> None:
    z = torch.tensor([[[confidence, 0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    loss_value = objective(loss, Y)(z)
    (slope,) = torch.autograd.grad(loss_value.sum(), z)
    right = 1 / (1 + 2 * math.exp(-confidence))
    wrong = 2 * math.exp(-confidence) * right
    exact = math.log1p(2 * math.exp(-confidence)) if confidence > -500 else -confidence + math.log(2)
    assert float(loss_value.detach()) == pytest.approx(exact, rel=1e-9)
    torch.testing.assert_close(
        slope[0, 0], torch.tensor([-wrong, wrong / 2, wrong / 2], dtype=torch.float64), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_saturated_units_still_have_a_gradient(loss: str) -> None:
    z = torch.tensor([300.0, 1.0, 0.0, -1.0], dtype=torch.float64).repeat(4, 1, 1, 1).requires_grad_()
    (slope,) = torch.autograd.grad(objective(loss, Y)(z).sum(), z)
    assert slope.isfinite().all()
    assert (slope[..., 0] < 0).all()
    assert slope[..., 1].min() > 0


@pytest.mark.parametrize("classes", [2, 3])
def test_dlr_refuses_too_few_classes(classes: int) -> None:
    targets = torch.tensor([1]) if classes == 3 else None
    with pytest.raises(InputError, match=rf"on {classes} classes"):
        objective("dlr", Y, targets=targets)(torch.zeros(1, 1, 1, classes))


def test_a_misspelt_loss_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'margin'"):
        objective("margins", Y)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(InputError, match="temperature is 0"):
        objective("ce", Y, temperature=0.0)
