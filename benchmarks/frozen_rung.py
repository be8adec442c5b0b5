"""Rung 1 on the copy with integer codes and bfloat16 gradients, and in floats: what each leaves.

`python -m benchmarks.frozen_rung --output FILE.json` attacks images of the model `cifar10-small`. Both
attacks have the same seed and budget; the network itself scores both sets of points in floats on the same
draws, so that the difference is paired over images and draws.
"""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import squint
from squint import zoo
from squint._files import write_json
from squint.evaluation.budgets import QUICK
from squint.evaluation.equivalence import equivalence
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.scoring import score
from squint.quantize import integer_kernel
from squint.study.published import kept_images

EPS = "5/255"
RESUBMISSIONS = 64


def in_floats(wanted: bool) -> AbstractContextManager[object]:
    """Let no layer run on integer codes inside, if that is wanted."""
    return mock.patch.object(integer_kernel, "available", return_value=False) if wanted else nullcontext()


def main() -> None:
    """Attack twice, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    model = squint.load("cifar10-small").eval()
    data = kept_images(zoo.resolved("cifar10-small"))
    assert data is not None, "the shipped folder keeps its images"
    images = slice(arguments.images)
    data = replace(data, images=data.images[images], labels=data.labels[images])
    left: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for name in ("codes", "floats"):
        start = time.perf_counter()
        with in_floats(name == "floats"):
            budget = replace(QUICK.first(1), precise=name == "floats")
            result = run_ladder(
                model, data, EPS, budget, system="rung 1", counts=(1,), known=False, resubmissions=1
            )
        seconds[name] = time.perf_counter() - start
        with in_floats(True), torch.no_grad():
            scores = score(
                model,
                result.points_uint8.float() / 255,
                result.labels,
                draws=4,
                resubmissions=RESUBMISSIONS,
                seed=0,
                keys=("rung 1",),
            )
        left[name] = scores.correct.double()
    found = equivalence(left["codes"] - left["floats"])
    record = {
        "model": "cifar10-small",
        "eps": EPS,
        "n": len(data.labels),
        "seed": 0,
        "resubmissions": RESUBMISSIONS,
        "accuracy": {name: float(correct.mean()) for name, correct in left.items()},
        "seconds": seconds,
        "codes_minus_floats": found.to_json(),
    }
    write_json(arguments.output, record)
    for name, correct in left.items():
        print(f"rung 1 on {name}: {correct.mean():.1%} left, {seconds[name]:.0f} s")
    print(f"codes minus floats: {found}")


if __name__ == "__main__":
    main()
