"""The chunk is the machine's: it decides which draws are taken, and nothing else."""

from __future__ import annotations

from typing import Any

import torch

from squint.evaluation.budgets import tiny
from squint.evaluation.ladder_result import LadderResult
from squint.evaluation.ladder_run import run_ladder
from tests.evaluation.ladder_models import small_ensemble

EPS = 0.1


def climbed() -> dict[int | None, LadderResult]:
    """Return the result of the same climb with all draws at once and with one at a time."""
    model = small_ensemble()
    x = torch.rand(48, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model.member_logits(x, 64, generator=torch.Generator().manual_seed(1)).softmax(-1).mean((0, 1))
    arguments: dict[str, Any] = {"counts": (1,), "resubmissions": 40, "batch_size": 48, "known": False}
    return {
        chunk: run_ladder(model, (x, y.argmax(-1)), EPS, tiny(steps=2), chunk=chunk, **arguments)
        for chunk in (None, 1)
    }


def test_the_chunk_changes_draws_only() -> None:
    """Other points, the same accuracy: each result lies in the other's 95 % interval over images.

    Both are of the same images, so they are much closer than intervals of independent samples.
    """
    results = climbed()
    found = {chunk: result.summary() for chunk, result in results.items()}
    assert not torch.equal(results[None].climb.points["deployed"], results[1].climb.points["deployed"])
    assert 0.1 < found[None]["robust_accuracy"] < found[None]["clean_accuracy"] - 0.02
    for one in found.values():
        for other in found.values():
            low, high = one["ci95"]
            assert low <= other["robust_accuracy"] <= high
    # What no gradient goes into is the same bit for bit.
    for result in results.values():
        assert torch.equal(result.clean.errors, results[None].clean.errors)
        assert torch.equal(result.clean_margins, results[None].clean_margins)
