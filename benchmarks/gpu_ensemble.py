"""The ensemble of a recipe on a GPU: a training step, a gradient and a prediction, by width and stem.

`python -m benchmarks.gpu_ensemble --networks 64x1 48x1 --output FILE.json` needs CUDA. Steps are those of
`squint.fit` on made-up images, two draws each, without and with cuDNN trying its kernels first; gradients and
predictions are one draw of all members in float32, as attacks take them. `--profile FILE` writes which
kernels a step spends its time in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import squint
from squint import data as D
from squint._files import write_json
from squint.attacks import pgd
from squint.attacks.modes import full_float32
from squint.study.recipes import load_recipe
from squint.study.systems import build_system
from squint.training import EnsembleObjective, Watcher, fit

HEADLINE = "stochastic-information"
STEPS = 12
IMAGES = 250


def made_up(count: int) -> D.ImageData:
    """Return random bytes with ten classes, shaped as CIFAR-10's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return D.ImageData(images, torch.arange(count) % 10, tuple("abcdefghij"), "made-up")


def trained(width: int, patch: int, batch_size: int) -> tuple[squint.Ensemble, float]:
    """Return the recipe's headline after a few steps, and the median seconds of a step, without the first."""
    recipe = replace(load_recipe("cifar10"), width=width, patch=patch)
    system = recipe.systems[HEADLINE]
    images = made_up(batch_size * STEPS)
    ens = build_system(recipe, HEADLINE, images)
    draws = system.training_draws
    config = replace(
        recipe.train, epochs=1, cycles=1, batch_size=batch_size, objective=system.objective, draws=draws
    )
    times: list[float] = []

    def note(_step: int, _total: int) -> None:
        torch.cuda.synchronize()
        times.append(time.perf_counter())

    # Two draws that agree from the first step, as after the warm-up.
    objective = EnsembleObjective(replace(system.objective, agreement_warmup=0.0), draws, STEPS)
    fit(ens, images, config, objective, watcher=Watcher(on_step=note))
    return ens, statistics.median(b - a for a, b in pairwise(times))


def seconds_per_image(ens: squint.Ensemble) -> dict[str, float]:
    """Return the seconds of one gradient and of one prediction of one draw of all members, for one image."""
    images = made_up(IMAGES)
    x, y = images.images.cuda() / 255, images.labels.cuda()
    found = {}
    for name, steps in (("gradient", 10), ("again", 10)):
        torch.cuda.synchronize()
        started = time.perf_counter()
        pgd(ens, x, y, eps=5 / 255, steps=steps, generator=torch.Generator().manual_seed(0))
        torch.cuda.synchronize()
        found[name] = (time.perf_counter() - started) / steps / IMAGES
    predict(ens, x)
    started = time.perf_counter()
    predict(ens, x)
    found["prediction"] = (time.perf_counter() - started) / 16 / IMAGES
    return {"gradient": found["again"], "prediction": found["prediction"]}


def predict(ens: squint.Ensemble, x: Tensor) -> None:
    """Predict with sixteen draws."""
    with torch.no_grad(), full_float32():
        ens.member_logits(x, 16, generator=torch.Generator().manual_seed(0))
    torch.cuda.synchronize()


def profile(width: int, patch: int, batch_size: int, output: Path) -> None:
    """Write the kernels of a few training steps, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        trained(width, patch, batch_size)
    table = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)
    output.write_text(table, encoding="utf-8")


def main() -> None:
    """Time, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["64x1", "48x1", "48x2"], help="WIDTHxPATCH")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--profile", type=Path, default=None, help="file for the first network's kernels")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu_ensemble needs a CUDA device")
    rows: list[dict[str, Any]] = []
    for network, autotune in product(given.networks, (False, True)):
        torch.backends.cudnn.benchmark = autotune
        width, patch = (int(part) for part in network.split("x"))
        ens, step = trained(width, patch, given.batch_size)
        row = {"network": network, "autotune": autotune, "batch_size": given.batch_size, "step": step}
        row |= seconds_per_image(ens)
        rows.append(row)
        each = [f"{name} {row[name] * 1e6:.1f}" for name in ("gradient", "prediction")]
        tried = "cuDNN tries" if autotune else ""
        print(f"{network:<6} {tried:<12} step {step * 1e3:.1f} ms; microseconds an image: {', '.join(each)}")
    if given.output is not None:
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        write_json(given.output, {**device, "images": IMAGES, "seconds": rows})
    if given.profile is not None:
        width, patch = (int(part) for part in given.networks[0].split("x"))
        profile(width, patch, given.batch_size, given.profile)


if __name__ == "__main__":
    main()
