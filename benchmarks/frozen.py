"""The copy that attacks run on, on integer codes and in floats: a pooled gradient and a forward pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import cast
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.timing import medians, show
from squint import Ensemble, calibrate, models, quantize
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective
from squint.evaluation.frozen import frozen
from squint.quantize import integer_kernel

IMAGES = 32
DRAWS = 8


def main() -> None:
    """Print the table."""
    x = torch.rand(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(IMAGES) % 10
    for width in (16, 32):
        _compare(width, x, y)


def _compare(width: int, x: Tensor, y: Tensor) -> None:
    members = [quantize(models.resnet8(width=width), bits, 4, 2, activation_width=0.0) for bits in (2, 3, 4)]
    for member in members:
        calibrate(member, x)
    ens = Ensemble(members, draws=4).eval()
    with mock.patch.object(integer_kernel, "available", return_value=False):
        floats = frozen(ens)
    copies = {"floats": floats, "codes": frozen(ens), "precise": frozen(ens, precise=True)}
    goal = objective("ce", y)

    def gradient(model: AnyModel) -> Tensor:
        return Units(model, y, DRAWS, stratified=True).gradient(x, goal, 1)[0]

    def forward(model: AnyModel) -> Tensor:
        return Units(model, y, DRAWS, stratified=True).logits(x, 1)

    with ExitStack() as stack:
        for copy in copies.values():
            stack.enter_context(evaluation_mode(cast(nn.Module, copy)))
        tasks = {}
        for name, copy in copies.items():
            tasks[f"gradient, {name}"] = lambda copy=copy: gradient(copy)
            tasks[f"forward, {name}"] = lambda copy=copy: forward(copy)
        ms = {name: value / IMAGES / DRAWS for name, value in medians(tasks, repeats=5, warmup=1).items()}
    show(
        f"frozen copy, 3 x ResNet-8 of width {width}, ms per image and draw",
        "ratio at most 0.5",
        [
            (kind, ms[kind], kind.split(",")[0] + ", floats", ms[kind.split(",")[0] + ", floats"])
            for kind in ("gradient, codes", "gradient, precise", "forward, codes")
        ],
    )


if __name__ == "__main__":
    main()
