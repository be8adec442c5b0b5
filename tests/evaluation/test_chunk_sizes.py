"""The chunk is the machine's: it decides what is held in memory at once, and nothing else."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import squint
from squint.evaluation.budgets import Budget, Move, Rung, tiny
from squint.evaluation.ladder_result import LadderResult
from squint.evaluation.ladder_run import run_ladder
from tests.evaluation.ladder_models import small_ensemble

EPS = 0.1
STRATIFIED = Budget(
    "stratified",
    (
        Rung("apgd", (Move("apgd", 4, 7, "random", loss="ce"),)),
        Rung("members", (Move("mora", 2, 5, targets=0), Move("arc", 1, 8, targets=2))),
        Rung("black box", (Move("spsa", 2, 5, runs=3), Move("pgd", 3, 4, adaptive=True))),
    ),
)


class Small(squint.Ensemble):
    """An ensemble for whose graphs there is memory for `largest` draws at once."""

    largest = 10**9

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        if torch.is_grad_enabled() and draws > self.largest:
            raise RuntimeError(f"out of memory: {draws} draws")
        return super().member_logits(x, draws, generator=generator, stratified=stratified)


@cache
def attacked() -> tuple[Small, Tensor, Tensor]:
    """Return a model, images, and the classes that it gives them."""
    model = Small(list(small_ensemble().members), draws=2).eval()
    x = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = model.member_logits(x, 64, generator=torch.Generator().manual_seed(1))
    return model, x, z.softmax(-1).mean((0, 1)).argmax(-1)


def climbed(budget: Budget, chunk: int | None = None, largest: int = 10**9) -> LadderResult:
    model, x, y = attacked()
    model.largest = largest
    arguments: dict[str, Any] = {"counts": (1,), "resubmissions": 8, "batch_size": 24, "known": False}
    return run_ladder(model, (x, y), EPS, budget, chunk=chunk, **arguments)


@pytest.mark.parametrize("budget", [tiny(steps=3, eot=7), STRATIFIED], ids=lambda budget: str(budget.name))
def test_no_chunk_and_no_lack_of_memory_changes_an_example(budget: Budget) -> None:
    """Sums over chunks round otherwise in the last digits of a gradient, which moves no sign here."""
    whole = climbed(budget)
    assert 0.1 < whole.summary()["robust_accuracy"] < whole.summary()["clean_accuracy"] - 0.02
    for chunk, largest in ((3, 10**9), (1, 10**9), (None, 3)):
        other = climbed(budget, chunk, largest)
        held = [run.chunk for run in other.climb.rungs]
        assert max(each or 10**9 for each in held) <= 3, "the chunk was not used, or not halved"
        for rule, points in whole.climb.points.items():
            torch.testing.assert_close(other.climb.points[rule], points, rtol=0, atol=1e-6)
        assert torch.equal(other.deployed.errors, whole.deployed.errors)
        assert torch.equal(other.climb.gradients, whole.climb.gradients), "a failed attempt is not counted"
