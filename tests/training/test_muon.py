"""Muon: its iteration in closed form, torch's own as the oracle, AdamW beside it, and checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.nets import ensemble, source, toy_data
from tests.training.settings import FULL, STEPS, config, same
from tests.training.test_resume import stopping_at
from torch import Tensor

from squint.training import TrainingStopped, fit
from squint.training.muon import MATRICES, MOMENTUM, Muon, orthogonalized
from squint.training.preparation import make_optimizer

SHAPES = [(7, 7), (5, 12), (12, 5), (1, 6), (6, 1)]
CPU = torch.device("cpu")


def factors(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors and values of a matrix of the shape, from 1 down to a hundredth."""
    u, _, v = torch.linalg.svd(
        torch.randn(shape, generator=source(1), dtype=torch.double), full_matrices=False
    )
    return u, torch.logspace(0, -2, min(shape), dtype=torch.double), v


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_moves_singular_values_alone_along_its_polynomial(shape: tuple[int, int]) -> None:
    u, values, v = factors(shape)
    wanted = values / values.norm()
    for _ in range(5):
        wanted = 3.4445 * wanted - 4.7750 * wanted**3 + 2.0315 * wanted**5
    result = orthogonalized(u @ values.diag() @ v)
    torch.testing.assert_close(result, u @ wanted.diag() @ v, atol=1e-9, rtol=0)
    # Which for values of a hundredth of the largest is near enough to 1.
    assert wanted.min() > 0.6
    assert wanted.max() < 1.3


def test_what_has_faded_counts_as_zero() -> None:
    """A channel whose gradient has ended: its momentum shrinks with every step, down to denormal numbers."""
    live = torch.randn((8, 20), generator=source(3))
    zero, faded, small = (live.clone() for _ in range(3))
    zero[2] = 0
    faded[2] *= 1e-20
    small[2] *= 1e-9
    assert torch.equal(orthogonalized(faded), orthogonalized(zero))
    assert torch.equal(orthogonalized(faded)[2], torch.zeros(20))
    assert orthogonalized(small)[2].abs().min() > 0


def test_float32_is_precise_and_zeros_stay_zeros() -> None:
    u, values, v = factors((16, 40))
    matrix = u @ values.diag() @ v
    torch.testing.assert_close(
        orthogonalized(matrix.float()).double(), orthogonalized(matrix), atol=1e-3, rtol=0
    )
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert orthogonalized(torch.randn(4, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_a_matrix_moves_as_with_torchs_muon(shape: tuple[int, int]) -> None:
    ours, theirs = (torch.nn.Parameter(torch.randn(shape, generator=source(2))) for _ in range(2))
    start = ours.detach().clone()
    a = Muon([{"params": [ours], "weight_decay": 0.1, MATRICES: True}], 0.01)
    b = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(6):
        gradient = torch.randn(shape, generator=source(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in (a, b):
            optimizer.step()
        assert torch.equal(ours.grad, gradient)
    # Theirs iterates in bfloat16, of three digits.
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()
    assert (ours - start).norm() > 0.1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_moves_as_the_matrix_of_its_output_channels(layout: torch.memory_format) -> None:
    start, gradient = (torch.randn(4, 3, 3, 3, generator=source(k)) for k in (3, 4))
    convolution = torch.nn.Parameter(start.clone().to(memory_format=layout))
    matrix = torch.nn.Parameter(start.flatten(1).clone())
    convolution.grad, matrix.grad = gradient.clone().to(memory_format=layout), gradient.flatten(1).clone()
    for weight in (convolution, matrix):
        Muon([{"params": [weight], "weight_decay": 0.1, MATRICES: True}], 0.01).step()
    assert convolution.is_contiguous(memory_format=layout)
    torch.testing.assert_close(convolution.detach().flatten(1), matrix.detach())


def test_all_else_moves_as_with_adamw() -> None:
    matrix, ours, theirs = (torch.nn.Parameter(torch.randn(3, 4, generator=source(5))) for _ in range(3))
    a = Muon([{"params": [matrix], MATRICES: True}, {"params": [ours], "weight_decay": 0.2}], 0.01)
    b = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.2)
    for step in range(3):
        for weight in (matrix, ours, theirs):
            weight.grad = torch.randn(3, 4, generator=source(step))
        for optimizer in (a, b):
            optimizer.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(matrix, theirs)
    assert a.state[matrix].keys() == {"step", MOMENTUM}
    matrix.grad = None
    before = matrix.detach().clone()
    a.step()
    assert torch.equal(matrix, before)


def test_the_inner_layers_weights_are_the_matrices() -> None:
    ens = ensemble(inner=True)
    names = {id(parameter): name for name, parameter in ens.named_parameters()}
    groups = make_optimizer(ens, config(optimizer="muon", weight_decay=0.3), CPU).param_groups
    moved = [names[id(p)] for group in groups if group.get(MATRICES) for p in group["params"]]
    assert len(moved) == len(ens.members)
    assert all(name.endswith("3.weight") for name in moved), moved
    assert all(group["weight_decay"] == 0.3 for group in groups if group.get(MATRICES))
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(names)


def test_stopped_and_continued_is_bit_identical_to_never_stopped(tmp_path: Path) -> None:
    settings = config(**FULL, optimizer="muon", learning_rate=0.02)
    straight = ensemble(inner=True)
    fit(straight, toy_data(), settings)
    for stop in (1, STEPS, STEPS + 1):
        with pytest.raises(TrainingStopped):
            fit(
                ensemble(inner=True),
                toy_data(),
                settings,
                checkpoint=tmp_path / "a",
                watcher=stopping_at(stop),
            )
        again = ensemble(inner=True)
        fit(again, toy_data(), settings, checkpoint=tmp_path / "a")
        assert same(again, straight), stop
        (tmp_path / "a").unlink()
    other = ensemble(inner=True)
    fit(other, toy_data(), config(**FULL, optimizer="adamw", learning_rate=0.02))
    assert not same(other, straight)
