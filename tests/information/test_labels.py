"""Plug-in information of soft labels against channels and enumerated tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from squint._checks import InputError, InputTypeError
from squint.information import (
    JointTable,
    joint_table,
    soft_label_conditional_mutual_information,
    soft_label_mutual_information,
    table_mutual_information,
)


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def codes(values: Tensor, classes: int) -> Tensor:
    return one_hot(values, classes).double()


def soft(n: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, dtype=torch.float64, generator=generator).mul(2).softmax(1)


@pytest.mark.parametrize("flips", [1, 10, 40, 50])
def test_binary_symmetric_channel(flips: int) -> None:
    sent = torch.arange(200) % 2
    flipped = torch.arange(200) < 2 * flips  # as many zeros as ones
    received = sent ^ flipped.long()
    expected = math.log(2) - binary_entropy(flips / 100)
    assert float(soft_label_mutual_information(codes(sent, 2), codes(received, 2))) == pytest.approx(
        expected, abs=1e-12
    )
    # The same channel as soft labels of a certain input.
    noisy = torch.tensor([[1 - flips / 100, flips / 100]], dtype=torch.float64)
    both = torch.cat([noisy, noisy.flip(1)])
    assert float(soft_label_mutual_information(codes(torch.arange(2), 2), both)) == pytest.approx(
        expected, abs=1e-12
    )


def test_identical_and_independent_labels() -> None:
    y = torch.arange(30) % 5
    assert float(soft_label_mutual_information(codes(y, 5), codes(y, 5))) == pytest.approx(math.log(5))
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(3))
    independent = soft_label_mutual_information(codes(grid[:, 0], 5), codes(grid[:, 1], 3))
    assert abs(float(independent)) < 1e-12


def test_constant_predictions_and_one_example_carry_nothing() -> None:
    p = soft(20, 4)
    assert abs(float(soft_label_mutual_information(p, p[:1].expand(20, 4)))) < 1e-12
    assert abs(float(soft_label_mutual_information(p[:1], p[:1]))) < 1e-12


def test_absent_classes_and_hard_labels_have_finite_gradients() -> None:
    p = codes(torch.tensor([0, 0, 1, 1]), 4).requires_grad_()
    q = soft(4, 4)
    (gradient,) = torch.autograd.grad(soft_label_mutual_information(p, q, correction="miller_madow"), p)
    assert bool(torch.isfinite(gradient).all())


def test_table_value_is_the_textbook_sum() -> None:
    table = torch.tensor([[0.3, 0.0], [0.1, 0.6]], dtype=torch.float64)
    expected = 0.3 * math.log(0.3 / 0.12) + 0.1 * math.log(0.1 / 0.28) + 0.6 * math.log(0.6 / 0.42)
    values = table_mutual_information(torch.stack([table, 7 * table]))
    assert values.tolist() == pytest.approx([expected] * 2, abs=1e-12)


def test_joint_table_is_the_mean_outer_product() -> None:
    p, q = soft(7, 3), soft(7, 4, seed=1)
    expected = torch.stack([torch.outer(a, b) for a, b in zip(p, q, strict=True)]).mean(0)
    assert torch.allclose(joint_table(p, q), expected, atol=1e-14)


def test_gradients_match_differences() -> None:
    a, b = (soft(6, 3, seed=s).log().requires_grad_() for s in (0, 1))
    y = torch.tensor([0, 0, 1, 1, 1, 0])

    def value(u: Tensor, v: Tensor) -> Tensor:
        p, q = u.softmax(1), v.softmax(1)
        plain = soft_label_mutual_information(p, q, correction="miller_madow")
        return plain + soft_label_conditional_mutual_information(p, q, y)

    assert torch.autograd.gradcheck(value, (a, b))


def test_correction_of_hard_labels_is_miller_madow() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 4, (50,), generator=generator) for _ in range(2))
    p, q = codes(a, 6), codes(b, 6)
    bins = [len(set(v)) for v in (a.tolist(), b.tolist(), list(zip(a.tolist(), b.tolist(), strict=True)))]
    expected = (bins[0] + bins[1] - bins[2] - 1) / (2 * 50)
    difference = soft_label_mutual_information(
        p, q, correction="miller_madow"
    ) - soft_label_mutual_information(p, q)
    assert float(difference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("hard", "n"), [(True, 100), (False, 40)])
def test_correction_removes_the_bias(hard: bool, n: int) -> None:
    """Pairs out of 3 × 3 distributions with a known table, a few rows at a time."""
    generator = torch.Generator().manual_seed(1)
    first = torch.eye(3, dtype=torch.float64) if hard else soft(3, 3)
    weights = torch.tensor([[4.0, 1, 1], [1, 4, 1], [1, 1, 4]], dtype=torch.float64) / 18
    truth = float(table_mutual_information(first.mT @ weights @ first))
    repeats = 2000
    values = torch.empty(repeats, 2, dtype=torch.float64)
    for index in range(repeats):
        cell = torch.multinomial(weights.flatten(), n, replacement=True, generator=generator)
        p, q = first[cell // 3], first[cell % 3]
        values[index, 0] = soft_label_mutual_information(p, q)
        values[index, 1] = soft_label_mutual_information(p, q, correction="miller_madow")
    bias, error = values.mean(0) - truth, values.std(0) / math.sqrt(repeats)
    assert float(bias[0]) > 4 * float(error[0])
    # The next order of the expansion is 1/n of the first.
    assert abs(float(bias[1])) < 4 * float(error[1]) + float(bias[0]) / 10


def test_conditional_is_the_mean_over_classes() -> None:
    p, q = soft(12, 3), soft(12, 4, seed=1)
    y = torch.tensor([5, 0, 5, 2, 2, 5, 0, 0, 0, 2, 5, 5])  # classes 1, 3 and 4 are absent
    for correction in ("none", "miller_madow"):
        expected = 0.0
        for label in (0, 2, 5):
            chosen = y == label
            part = soft_label_mutual_information(p[chosen], q[chosen], correction=correction)
            expected += float(part) * int(chosen.sum()) / 12
        value = soft_label_conditional_mutual_information(p, q, y, correction=correction)
        assert float(value) == pytest.approx(expected, abs=1e-12)


def test_two_perfect_members_share_the_label_and_nothing_given_it() -> None:
    y = torch.arange(40) % 10
    p = codes(y, 10)
    assert float(soft_label_mutual_information(p, p)) == pytest.approx(math.log(10))
    assert abs(float(soft_label_conditional_mutual_information(p, p, y))) < 1e-12


def test_averaged_table_has_weights_that_sum_to_one() -> None:
    batches = [(soft(8, 3, seed=s), soft(8, 4, seed=s + 10)) for s in range(3)]
    table = JointTable(3, 4, decay=0.5)
    for p, q in batches:
        last = table.update(p, q)
    tables = torch.stack([joint_table(p, q) for p, q in batches])
    weights = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64) / 1.75
    assert torch.allclose(last, (weights[:, None, None] * tables).sum(0), atol=1e-6)  # float32 buffer


def test_first_update_is_the_batch_and_decay_zero_forgets() -> None:
    table = JointTable(3, decay=0.0)
    for seed in range(3):
        p, q = soft(8, 3, seed=seed), soft(8, 3, seed=seed + 5)
        value, expected = float(table(p, q)), float(soft_label_mutual_information(p, q))
        assert value == pytest.approx(expected, abs=1e-6)


def test_gradient_is_the_batchs_own_at_the_average() -> None:
    p, q = soft(8, 3).requires_grad_(), soft(8, 3, seed=1)
    table = JointTable(3, decay=0.9).double()
    table.update(soft(8, 3, seed=2), soft(8, 3, seed=3))
    (gradient,) = torch.autograd.grad(table(p, q), p)
    average = table.table / (1 - 0.9**2)
    ratio = (average / average.sum(1, keepdim=True) / average.sum(0, keepdim=True)).log()
    expected = q @ ratio.mT / 8
    # The derivative along a direction that keeps rows on the simplex; constants along rows do not matter.
    assert torch.allclose(
        gradient - gradient.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True), atol=1e-12
    )


def test_table_state_survives_saving() -> None:
    table, copy = JointTable(3), JointTable(3)
    table.update(soft(8, 3), soft(8, 3, seed=1))
    copy.load_state_dict(table.state_dict())
    p, q = soft(8, 3, seed=2), soft(8, 3, seed=3)
    assert torch.equal(table(p, q), copy(p, q))


@pytest.mark.parametrize(
    ("p1", "p2", "message"),
    [
        (torch.randn(4, 3), soft(4, 3), "p1 has values"),
        (soft(4, 3), soft(4, 3) / 2, "p2 has values"),
        (soft(4, 3), soft(5, 3), "p2 has 5 rows but p1 has 4"),
        (soft(4, 3) * math.nan, soft(4, 3), "p1 contains NaN"),
        (soft(4, 3), soft(4, 3)[0], "p2 has shape"),
    ],
)
def test_bad_probabilities_are_named(p1: Tensor, p2: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        soft_label_mutual_information(p1, p2)
    with pytest.raises(InputError, match=message):
        joint_table(p1, p2)


def test_other_bad_arguments_are_named() -> None:
    p = soft(4, 3)
    with pytest.raises(InputTypeError, match="p1 must be"):
        soft_label_mutual_information([0.5, 0.5], p)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="did you mean 'miller_madow'"):
        soft_label_mutual_information(p, p, correction="miller-madow")
    with pytest.raises(InputError, match="y has shape"):
        soft_label_conditional_mutual_information(p, p, torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match="table is all zero"):
        table_mutual_information(torch.zeros(2, 2))
    with pytest.raises(InputError, match="table of shape"):
        table_mutual_information(torch.tensor([[1.0, -1.0]]))
    with pytest.raises(InputError, match="decay is"):
        JointTable(3, decay=1.0)
    with pytest.raises(InputError, match=r"allowed: \(4, 4\)"):
        JointTable(4).update(p, p)


def test_a_table_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(InputTypeError, match=r"table must be a torch\.Tensor, got list"):
        table_mutual_information([[1.0]])  # type: ignore[arg-type]
