"""What chance may do to a verification or a challenge, and what it may not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from squint.evaluation.evidence import break_with, verify
from squint.evaluation.evidence_files import Evidence
from tests.evaluation.ladder_models import Coin, NoisyPair, pair_data

EPS = 10 / 255


def test_images_that_turn_without_noise_are_no_resubmissions_error() -> None:
    x, y = pair_data(NoisyPair(), 10, margin=1.0)
    x = (255 * x).round() / 255
    still = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    with torch.no_grad():
        right = (still(x).argmax(-1) == y).double()
    clean = (x * 255).round().to(torch.uint8)
    for turned, agrees in ((0, True), (1, True), (2, False), (4, False)):
        saved = right.clone()
        saved[:turned] = 1 - saved[:turned]
        shift = abs(float(saved.mean() - right.mean()))
        held = Evidence(torch.arange(10), y, clean, y * 0 - 1, saved, 64, EPS, "still")
        assert verify(still, (x, y), held, seed=1).agrees == (agrees or shift <= 0.1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_chance_beats_no_record_of_few_images(n: int, tmp_path: Path) -> None:
    coin, x, y = Coin(0.5), torch.full((n, 1, 4, 4), 0.5), torch.ones(n, dtype=torch.long)
    images = (x * 255).round().to(torch.uint8)
    own = Evidence(torch.arange(n), y, images, y * 0, torch.full((n,), 0.5), 64, EPS, "coin")
    path = tmp_path / "same.npz"
    np.savez(path, images=images.numpy(), index=np.arange(n), labels=y.numpy())
    wins = sum(
        break_with(coin, (x, y), path, eps=EPS, record=own, seed=seed).beats_record for seed in range(60)
    )
    assert wins <= 1
