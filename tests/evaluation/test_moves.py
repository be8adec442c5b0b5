"""What a move asks of the attack that it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squint.evaluation.budgets import EXHAUSTIVE, Budget, Move, Rung
from squint.evaluation.ladder import climb
from squint.evaluation.scoring import is_random
from tests.evaluation.ladder_models import NoisyPair, pair_data


def test_fewer_draws_leave_transfer_those_of_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []

    def transfer(sources: Any, x: torch.Tensor, *_: Any, eot: int, **__: Any) -> torch.Tensor:
        seen.append((is_random(sources[0].model), eot))
        return x

    monkeypatch.setattr("squint.attacks.transfer", transfer)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    budget = Budget("transfer", (Rung("all", (Move("transfer", 2, 20), Move("pgd", 2, 20))),))
    assert [move.eot for move in budget.with_draws(1).rungs[0].moves] == [20, 1]
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])
    sources = {"noisy": NoisyPair(), "still": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))}
    climb(net, x, y, 0.05, budget, resubmissions=1, sources=sources)
    assert sorted(set(seen)) == [(False, 1), (True, 20)]


def test_exhaustive_arc_looks_at_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = [move.targets for rung in EXHAUSTIVE.rungs for move in rung.moves if move.attack == "arc"]
    assert looked == [-1, -1]
    asked: list[Any] = []

    def arc(_: Any, x: torch.Tensor, *__: Any, max_classes: int | None, **___: Any) -> torch.Tensor:
        asked.append(max_classes)
        return x

    monkeypatch.setattr("squint.attacks.arc", arc)
    x, y = pair_data(NoisyPair(), 2, margin=1.0)
    climb(NoisyPair(), x, y, 0.05, Budget("arc", (Rung("arc", (Move("arc", 1, 1, targets=-1),)),)))
    assert set(asked) == {None}
