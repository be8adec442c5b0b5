"""How often intervals of the regression estimator hold the truth, and how wide they are.

`python -m benchmarks.extrapolation --output FILE.json` draws samples from populations of 10,000 images of
which a share loses to the expensive attack what the cheap one had left, wholly or in part, and estimates the
population's accuracy from each, as `squint extrapolate` does; half a minute on one core. Under the cheap
attack half of a noisy network's images are right, most of them always or never, or a tenth, a half or nine
tenths of those of a network without noise.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from squint._files import write_json
from squint.evaluation.extrapolation import extrapolate

POPULATION = 10_000
SAMPLES = (50, 100, 200, 500)
LOST = (0.005, 0.02, 0.05, 0.1, 0.3)
KINDS = ("wholly", "in part")
CHEAP = ("noisy, 0.5", "0.1", "0.5", "0.9")


def population(
    generator: np.random.Generator, cheaply: str, lost: float, kind: str
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return every image's share of correct deployments under the cheap attack and the expensive one."""
    if cheaply in CHEAP[1:]:
        cheap = (generator.random(POPULATION) < float(cheaply)).astype(np.float64)
    else:
        cheap = generator.beta(0.15, 0.15, POPULATION)
    kept = np.zeros(POPULATION) if kind == "wholly" else generator.random(POPULATION)
    hit = generator.random(POPULATION) < lost
    return cheap, np.where(hit, kept * cheap, cheap)


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=1500)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for cheaply, images, lost, kind in itertools.product(CHEAP, SAMPLES, LOST, KINDS):
        generator = np.random.default_rng(0)
        cheap, dear = population(generator, cheaply, lost, kind)
        held, widths, alone = 0, [], []
        for _ in range(arguments.repeats):
            chosen = generator.choice(POPULATION, images, replace=False)
            x, y = torch.from_numpy(cheap[chosen]), torch.from_numpy(dear[chosen])
            low, high = extrapolate(y, x, float(cheap.mean()), POPULATION).ci95
            held += low <= dear.mean() <= high
            widths.append(high - low)
            alone.append(float(y.std()) / images**0.5 * 2 * 1.96)
        row = {
            "cheap": cheaply,
            "images": images,
            "lost": lost,
            "kind": kind,
            "held": held / arguments.repeats,
            "width": float(np.mean(widths)),
            "width_of_the_sample_alone": float(np.mean(alone)),
        }
        rows.append(row)
        alone_width = row["width_of_the_sample_alone"]
        print(
            f"cheap {cheaply}, {images} images, {lost:.1%} lose {kind}: {row['held']:.1%} of intervals "
            f"hold the truth; width {row['width']:.1%}, of the sample alone {alone_width:.1%}",
            flush=True,
        )
    write_json(arguments.output, {"repeats": arguments.repeats, "seed": 0, "rows": rows})


if __name__ == "__main__":
    main()
