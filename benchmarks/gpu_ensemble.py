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
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import squint
from squint import data as D
from squint._checks import need_members
from squint._files import write_json
from squint.attacks import pgd
from squint.attacks.gradients import AnyModel
from squint.attacks.modes import full_float32
from squint.evaluation.frozen import frozen
from squint.study.recipes import load_recipe
from squint.study.systems import build_system
from squint.training import EnsembleObjective, Watcher, fit

HEADLINE = "stochastic-information"
STEPS = 12
IMAGES = 250
DRAWS = 16


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
    """Return the seconds of a gradient and of a prediction of one draw of all members, for one image."""
    images = made_up(IMAGES)
    x, y = images.images.cuda() / 255, images.labels.cuda()
    models = {"floats": ens, "codes": frozen(ens), "codes, float32 gradients": frozen(ens, precise=True)}
    found: dict[str, float] = {}
    for name, model in models.items():

        def gradients(model: AnyModel = model) -> None:
            pgd(model, x, y, eps=5 / 255, steps=10, generator=torch.Generator().manual_seed(0))

        found[f"gradient, {name}"] = timed(gradients) / 10 / IMAGES
        found[f"prediction, {name}"] = timed(partial(predict, model, x)) / DRAWS / IMAGES
    pair = []
    for model in (ens, models["codes"]):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad(), full_float32():
            pair.append(need_members(model, "a comparison").member_logits(x, 4, generator=generator))
    found["logits that differ by more than 1e-4"] = float(((pair[0] - pair[1]).abs() > 1e-4).float().mean())
    return found


def timed(task: Callable[[], object]) -> float:
    """Return the seconds of the second run of `task`."""
    for _ in range(2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        task()
        torch.cuda.synchronize()
    return time.perf_counter() - started


def predict(model: AnyModel, x: Tensor) -> None:
    """Predict with some draws."""
    with torch.no_grad(), full_float32():
        need_members(model, "predict").member_logits(x, DRAWS, generator=torch.Generator().manual_seed(0))


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
        print(f"{network}{', cuDNN tries' if autotune else ''}: step {step * 1e3:.1f} ms", flush=True)
        if autotune:
            each = seconds_per_image(ens)
            row |= each
            print(
                "\n".join(f"  {name}: {value * 1e6:.1f} millionths" for name, value in each.items()),
                flush=True,
            )
        rows.append(row)
    if given.output is not None:
        device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        write_json(given.output, {**device, "images": IMAGES, "seconds": rows})
    if given.profile is not None:
        width, patch = (int(part) for part in given.networks[0].split("x"))
        profile(width, patch, given.batch_size, given.profile)


if __name__ == "__main__":
    main()
