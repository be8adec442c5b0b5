"""Preflight and active tests where memory is short: half the draws, half the images, the same outcome."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from squint import noise
from squint.attacks import pgd
from squint.attacks.gradients import AnyModel
from squint.ensemble import Ensemble
from squint.evaluation import ladder_report as of_ladder
from squint.evaluation import preflight as of_preflight
from squint.evaluation.budgets import tiny
from squint.evaluation.ladder_report import ladder_report
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.machine import Fitting
from squint.evaluation.preflight import preflight
from squint.evaluation.preflight_runs import Probes
from squint.evaluation.records import Finding
from squint.evaluation.white_box import WhiteBox
from tests.evaluation.ladder_models import small_ensemble
from tests.evaluation.test_short_memory import Small, data, short

PROBES = Probes(
    images=6, eps_factors=(1.0,), steps=(2,), eot=(1, 6), restarts=(1,), square_steps=3,
    spsa_steps=1, spsa_directions=2, transfer_steps=2, fidelity_draws=16, resubmissions=8, batch_size=6,
)  # fmt: skip


class Stopped(Exception):  # noqa: N818
    """Enough was seen."""


@pytest.fixture
def ens() -> Small:
    with noise(torch.Generator().manual_seed(5)):
        return Small(list(small_ensemble(2).members), draws=2).eval()


def looked(ens: Ensemble, fitting: Fitting) -> dict[str, Any]:
    """Return what preflight measures on the way to its findings."""
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("excesses", "unfaithful", "zero_gradients"):
            own = getattr(of_preflight, name)

            def watched(*args: Any, name: str = name, own: Any = own, **more: Any) -> Any:
                found = own(*args, **more)
                seen[name] = found if name == "zero_gradients" else args[0]
                return found

            patch.setattr(of_preflight, name, watched)
        white = WhiteBox(steps=2, eot=4)
        preflight(ens, data(), 0.1, seed=0, attack=white, probes=PROBES, fitting=fitting)
    fidelity = seen["unfaithful"]
    return {
        "outcomes": [
            value for each in seen["excesses"] for value in vars(each).values() if isinstance(value, Tensor)
        ],
        "fidelity": torch.tensor([fidelity.predicted, fidelity.actual]),
        "zero": seen["zero_gradients"],
    }


@pytest.mark.parametrize(("largest", "rows"), [(3, 10**9), (1, 16)])
def test_preflight_goes_on_with_fewer_draws_and_images(largest: int, rows: int, ens: Small) -> None:
    wanted, fitting = looked(ens, Fitting()), Fitting()
    assert len(wanted["outcomes"]) >= 6
    assert 0.05 < float(torch.stack(wanted["outcomes"]).mean()) < 0.95, "nothing is there to differ"
    with short(ens, largest, rows):
        found = looked(ens, fitting)
    # Sums over draws round otherwise in the last digits of a gradient.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert fitting.draws is None or fitting.draws <= largest
    assert fitting.rows is None or fitting.rows <= rows
    # What fitted is begun with: nothing fails again.
    ens.largest, ens.rows, ens.failed = largest, rows, 0
    looked(ens, fitting)
    assert ens.failed == 0


def test_memory_for_no_draw_at_all_ends_preflight(ens: Small) -> None:
    with short(ens, largest=0), pytest.raises(RuntimeError, match="can't allocate memory for 1 draws"):
        looked(ens, Fitting())


def test_an_attack_that_cannot_be_cut_is_not_called_again(ens: Small) -> None:
    calls: list[int] = []

    def own(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        calls.append(len(x))
        return pgd(model, x, y, eps=eps, steps=1, eot=8, generator=generator)

    with short(ens, largest=3), pytest.raises(RuntimeError, match="can't allocate memory for 8 draws"):
        preflight(ens, data(), 0.1, seed=0, attack=own, probes=PROBES)
    assert calls == [6]


def test_the_ladder_tells_preflight_and_active_tests_what_fitted(
    ens: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probed(*_: Any, fitting: Fitting, **__: Any) -> list[Finding]:
        assert fitting.draws == 3, "what the ladder halved six draws to"
        fitting.rows = 20
        return []

    def tested(model: Ensemble, images: Any, eps: float, *, attack: Any, doubled: Any, **_: Any) -> None:
        assert model.chunk == 20
        for each in (attack, doubled):
            ens.failed = 0
            each(model, *images, eps, torch.Generator().manual_seed(0))
            assert ens.failed == 0
        ens.failed = 1
        raise Stopped

    run = partial(run_ladder, known=False, counts=(1,))
    monkeypatch.setattr(of_ladder, "run_ladder", run)
    monkeypatch.setattr(of_ladder, "preflight", probed)
    monkeypatch.setattr(of_ladder, "active_tests", tested)
    arguments: dict[str, Any] = {
        "system": "s", "draws": 2, "resubmissions": 8, "seed": 0, "limit": None, "batch_size": 6,
        "tier": "A", "sources": None, "folder": None, "progress": None,
    }  # fmt: skip
    with short(ens, largest=3), pytest.raises(Stopped):
        ladder_report(ens, data(), [0.1], replace(tiny(steps=1, eot=6), name="standard"), **arguments)
