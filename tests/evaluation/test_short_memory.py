"""Planes, threats and detection where memory is short: fewer draws and images at once, the same results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from squint import noise
from squint.ensemble import Ensemble
from squint.evaluation.detection import Detector, detect
from squint.evaluation.information_plane import information_plane
from squint.evaluation.machine import Fitting
from squint.evaluation.threats import PlaneBudget, named_threats
from tests.evaluation.ladder_models import small_ensemble
from tests.evaluation.sharded_job import untimed

EPS = "26/255"
LEAST = PlaneBudget(steps=2, apgd_steps=3, mora_steps=1, square_steps=4, eot=4)
THREATS = ("linf-pgd", "l2-pgd", "apgd", "square", "mora", "transfer", "transfer-members")


class Small(Ensemble):
    """An ensemble with memory for `largest` draws with a graph, and for `rows` images in a pass without."""

    largest = rows = 10**9
    failed = 0

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        self._hold(draws, len(x))
        return super().member_logits(x, draws, generator=generator, stratified=stratified)

    def _hold(self, draws: int, images: int) -> None:
        graph, folded = torch.is_grad_enabled(), min(draws, max(1, self.chunk // images)) * images
        if draws > self.largest if graph else folded > self.rows:
            self.failed += 1
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory for {draws} draws")


@pytest.fixture
def ens() -> Small:
    with noise(torch.Generator().manual_seed(5)):
        return Small(list(small_ensemble(2).members), draws=2).eval()


def data(n: int = 6, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=generator), torch.randint(4, (n,), generator=generator)


@contextmanager
def short(ens: Small, largest: int = 10**9, rows: int = 10**9) -> Iterator[None]:
    """Take memory away; it must have run out, and the ensemble must be as it was afterwards."""
    own = ens.chunk
    ens.largest, ens.rows, ens.failed = largest, rows, 0
    yield
    assert ens.failed > 0
    assert ens.chunk == own
    ens.largest = ens.rows = 10**9


@pytest.mark.parametrize("name", THREATS)
def test_every_attack_of_the_plane_goes_on_with_fewer_draws(name: str, ens: Small) -> None:
    (threat,) = named_threats([name], LEAST)
    x, y = data()

    def run(fitting: Fitting) -> Tensor:
        return threat.attack(ens, x, y, 0.1, stream=lambda: torch.Generator().manual_seed(1), fitting=fitting)

    wanted, fitting = run(Fitting()), Fitting()
    if name in ("square", "transfer"):
        # No graph is asked of the model itself: of candidates' draws, and of its twin.
        torch.testing.assert_close(run(Fitting(draws=1)), wanted, rtol=0, atol=1e-6)
        return
    with short(ens, largest=1):
        found = run(fitting)
    assert fitting.draws == 1
    # Sums over draws round otherwise in the last digits of a gradient.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_plane_is_the_same_where_memory_is_short(ens: Small) -> None:
    arguments: dict[str, Any] = {
        "eps": EPS, "budget": LEAST, "bootstrap": 2, "resubmissions": 4, "draws": 2,
        "estimators": ("soft_label",),
    }  # fmt: skip
    threats = ("linf-pgd", "noise-linf")
    wanted = information_plane(ens, data(), threats, **arguments)
    with short(ens, largest=2, rows=40):
        found = information_plane(ens, data(), threats, **arguments)
    for row, other in zip(found.rows, wanted.rows, strict=True):
        assert (row.threat, row.eps, row.accuracy) == (other.threat, other.eps, other.accuracy)
        # Softmax of points that agree to the last digits.
        assert row.information == pytest.approx(other.information, abs=1e-5)


def test_detection_is_the_same_where_memory_is_short(ens: Small) -> None:
    arguments: dict[str, Any] = {
        "attacks": ["pgd-eot10"], "adaptive": ["selective", "agreement"], "steps": 4, "eot": 4,
        "check_every": 2, "resubmissions": 8, "scores": ("predictive_information", "gaussian_density"),
    }  # fmt: skip
    wanted = detect(ens, data(), data(40, 4), EPS, **arguments)
    with short(ens, largest=3, rows=40):
        found = detect(ens, data(), data(40, 4), EPS, **arguments)
    assert untimed(found.to_json()) == untimed(wanted.to_json())


def test_a_detector_answers_the_same_with_fewer_images_in_a_pass(ens: Small) -> None:
    detector = Detector.fit(ens, data(40, 4), score="gaussian_density")
    wanted = detector.examine(data()[0], generator=torch.Generator().manual_seed(2))
    with short(ens, rows=30):
        again = Detector.fit(ens, data(40, 4), score="gaussian_density")
        found = detector.examine(data()[0], generator=torch.Generator().manual_seed(2))
    assert torch.equal(again.calibration, detector.calibration)
    assert torch.equal(found.score, wanted.score)
    assert torch.equal(found.prediction, wanted.prediction)


def test_memory_for_no_draw_at_all_ends_detection_and_plane(ens: Small) -> None:
    with short(ens, largest=0), pytest.raises(RuntimeError, match="can't allocate memory for 1 draws"):
        information_plane(ens, data(), ("linf-pgd",), eps=EPS, budget=LEAST, bootstrap=2)
