"""A training step against three full-precision steps, what eta, lambda and Muon add, what kernels save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch
from torch import nn

from benchmarks.timing import medians, show
from squint import Ensemble, ObjectiveConfig, calibrate, models, quantize
from squint.quantize import small_maps
from squint.quantize.compiled import compiled_passes
from squint.training import EnsembleObjective
from squint.training.muon import MATRICES, Muon

BATCH = 128


def _step(ens: Ensemble, config: ObjectiveConfig, draws: int) -> Callable[[], None]:
    objective = EnsembleObjective(config, draws, 1)
    optimizer = torch.optim.SGD(ens.parameters(), lr=1e-4, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)

    def step() -> None:
        terms = objective(ens, x, y, 1)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()

    return step


def _stochastic() -> Ensemble:
    nets: list[nn.Module] = [
        quantize(models.resnet8(), bits, 4, 2, activation_width=0.0) for bits in (2, 3, 4)
    ]
    for net in nets:
        calibrate(net, torch.rand(64, 3, 32, 32))
    return Ensemble(nets).train()


def _resnet18() -> Callable[[], None]:
    """Return a step of the recipe `cifar10`: ResNet-18 members, bfloat16, channels last, two draws."""
    nets: list[nn.Module] = [
        quantize(models.resnet18(width=48, patch=2), bits, 4, 2, activation_width=0.0) for bits in (2, 3, 4)
    ]
    for net in nets:
        calibrate(net, torch.rand(64, 3, 32, 32))
    ens = Ensemble(nets).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = ObjectiveConfig(conditional_redundancy=0.1, agreement=40.0, agreement_warmup=0.0)
    step = _step(ens, config, 2)

    def mixed() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return mixed


def kernels() -> None:
    """Print what products of patches or maps and compiled passes save on a ResNet-18."""
    step = _resnet18()

    def torchs() -> None:
        with mock.patch.object(small_maps, "applies", return_value=False):
            step()

    def patches() -> None:
        with mock.patch.object(small_maps, "_MANY", math.inf):
            step()

    def compiled() -> None:
        with compiled_passes():
            step()

    ms = medians({"torch's": torchs, "patches": patches, "products": step, "compiled": compiled}, repeats=5)
    show(
        f"training step, ResNet-18 x 3 members, batch {BATCH}, two draws, {torch.get_num_threads()} threads",
        "all below 1, each below the one before",
        [
            ("small maps as products of patches", ms["patches"], "torch's convolutions", ms["torch's"]),
            ("+ of the whole map on 2x2", ms["products"], "torch's convolutions", ms["torch's"]),
            ("+ compiled passes (train.compile)", ms["compiled"], "torch's convolutions", ms["torch's"]),
        ],
    )


def optimizers() -> None:
    """Print what a step on the inner layers of one ResNet-18 member costs, by Muon and by AdamW."""
    shapes = [
        weight.flatten(1).shape
        for weight in models.resnet18(width=48, patch=2).parameters()
        if weight.ndim == 4
    ]

    def weights(faded: float = 1.0) -> list[nn.Parameter]:
        """Return weights with gradients, those of a fifth of the channels times `faded`."""
        made = [nn.Parameter(torch.randn(shape)) for shape in shapes[1:]]
        for weight in made:
            weight.grad = torch.randn(weight.shape)
            weight.grad[::5] *= faded
        return made

    ms = medians(
        {
            "ours": Muon([{"params": weights(), MATRICES: True}], 1e-4).step,
            "faded": Muon([{"params": weights(1e-19), MATRICES: True}], 1e-4).step,
            "torch's": torch.optim.Muon(weights(), lr=1e-4, adjust_lr_fn="match_rms_adamw").step,
            "adamw": torch.optim.AdamW(weights(), lr=1e-4).step,
        },
        repeats=5,
    )
    show(
        f"optimizer's step, one ResNet-18 of width 48, {torch.get_num_threads()} threads",
        "first row below 1, second near 1",
        [
            ("Muon on Gram matrices", ms["ours"], "torch.optim.Muon", ms["torch's"]),
            ("a fifth of the channels faded to 1e-19", ms["faded"], "Muon on Gram matrices", ms["ours"]),
            ("AdamW", ms["adamw"], "torch.optim.Muon", ms["torch's"]),
        ],
    )


def main() -> None:
    """Print the tables."""
    plain = Ensemble([models.resnet8()], draws=1).train()
    information = ObjectiveConfig(conditional_redundancy=0.1, information_warmup=0.0)
    tasks = {
        "plain": _step(plain, ObjectiveConfig(), 1),
        "information": _step(_stochastic(), information, 1),
        "agreement": _step(_stochastic(), replace(information, agreement=10.0, agreement_warmup=0.0), 2),
        "smoothness": _step(_stochastic(), replace(information, smoothness=0.1, smoothness_warmup=0.0), 1),
    }
    ms = medians(tasks, repeats=7)
    three = 3 * ms["plain"]
    show(
        f"training step, ResNet-8 x 3 members, batch {BATCH}, {torch.get_num_threads()} threads",
        "first row within 1.5",
        [
            ("stochastic, information on, one draw", ms["information"], "3 x full precision", three),
            ("+ agreement (eta), two draws", ms["agreement"], "3 x full precision", three),
            (
                "+ smoothness (lambda), finite difference, one draw",
                ms["smoothness"],
                "3 x full precision",
                three,
            ),
        ],
    )
    kernels()
    optimizers()


if __name__ == "__main__":
    main()
