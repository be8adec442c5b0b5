"""What attacks on detectors left: damaged files are as good as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from squint._files import write_tensors
from squint.evaluation.detection.kept import KeptPoints

NAMES = ("noisy", "pgd", "5/255")


@pytest.mark.parametrize("seconds", [10**400, "x", None, [1.0]])
def test_seconds_that_are_none_make_the_attack_run_again(seconds: object, tmp_path: Path) -> None:
    kept, images = KeptPoints(tmp_path, reuse=True), torch.rand(2, 1, 2, 2)
    kept.write(NAMES, "settings", images, 1.5)
    found = kept.read(NAMES, "settings")
    assert found is not None
    assert torch.equal(found[0], images)
    assert found[1] == 1.5
    (path,) = tmp_path.iterdir()
    held = json.dumps({"settings": "settings", "seconds": seconds})
    write_tensors(path, {"images": images}, {"squint_attacked": held})
    assert kept.read(NAMES, "settings") is None
