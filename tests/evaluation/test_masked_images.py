"""Gradients that fail on a part of the images: the means of all hide it, the images one by one do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import squint
from squint.evaluation.gradient_flags import Fidelity, fidelity, unevenly_faithful, unfaithful
from squint.evaluation.preflight import preflight
from tests.evaluation.graveyard import nets
from tests.evaluation.test_red_flags import ONE_LOOK, idle, kinds

ROOT = Path(__file__).parents[2]


class Steered(torch.autograd.Function):
    """Identity whose gradient is multiplied by `factor`, which broadcasts against it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


def steered(x: Tensor, factor: Tensor) -> Tensor:
    return cast(Tensor, Steered.apply(x, factor))  # type: ignore[no-untyped-call]


class Masked(nn.Module):
    """An honest network that hides its gradient on the darker `share` of the first 100 digits.

    "pixels" and "images" turn random signs, renewed at every call; "other" gives another network's gradient.
    """

    def __init__(self, how: str, share: float = 0.5) -> None:
        super().__init__()
        self.network, self.other, self.how = nets.undefended(), nets.small_cnn(9), how
        self.limit = float(brightness(nets.images()[0]).quantile(share))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "other":
            # The other network's gradient, forty times: this one's own is of a trained network's size.
            strange = 40 * self.other(x)
            shown = self.network(x.detach()) + strange - strange.detach()
        else:
            shape = x.shape if self.how == "pixels" else (len(x), 1, 1, 1)
            signs = torch.randint(2, shape, generator=self.generator).to(x) * 2 - 1
            shown = self.network(steered(x, signs))
        return torch.where((brightness(x) < self.limit)[:, None], shown, self.network(x))


def brightness(x: Tensor) -> Tensor:
    return x.detach().flatten(1).mean(1)


@pytest.mark.parametrize("eps", [8 / 255, 32 / 255])
@pytest.mark.parametrize("how", ["pixels", "images", "other"])
def test_half_of_the_images_cannot_be_masked(how: str, eps: float) -> None:
    x, y = nets.images()
    measured = fidelity(Masked(how), x, y, eps, seed=0, draws=16)
    finding = unevenly_faithful(measured)
    assert finding is not None
    assert finding.measured["n"] == 100
    assert unevenly_faithful(fidelity(nets.undefended(), x, y, eps, seed=0, draws=16)) is None


def test_the_mean_of_all_images_does_not_see_what_the_single_ones_show() -> None:
    x, y = nets.images()
    measured = fidelity(Masked("pixels"), x, y, 8 / 255, seed=0, draws=16)
    assert measured.ratio == pytest.approx(1.0, abs=0.1)
    assert unfaithful(measured) is None
    assert measured.unseen > 0.3


def test_a_quarter_is_enough_at_a_small_radius() -> None:
    x, y = nets.images()
    assert unevenly_faithful(fidelity(Masked("pixels", 0.25), x, y, 8 / 255, seed=0, draws=16)) is not None


@pytest.mark.parametrize(
    ("factor", "unseen", "overstated"),
    [(-1.0, 0.3, 0.0), (0.3, 0.3, 0.0), (0.4, 0.0, 0.0), (2.9, 0.0, 0.0), (3.1, 0.0, 0.3)],
)
def test_the_share_of_images_is_counted(factor: float, unseen: float, overstated: float) -> None:
    """The path integral of a smooth loss is exact, so that each image's ratio is its own factor."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(20, 12, generator=generator), torch.randn(12, 3, generator=generator)
    factors = torch.where(torch.arange(20) < 6, factor, 1.0)[:, None]
    measured = fidelity(
        lambda images: steered(images, factors) @ weight, x, torch.arange(20) % 3, 0.05, seed=0, draws=8
    )
    assert measured.unseen == pytest.approx(unseen)
    assert measured.overstated == pytest.approx(overstated)
    assert measured.images == 20


@pytest.mark.parametrize(
    ("unseen", "overstated", "found"),
    [(0.09, 0.0, False), (0.10, 0.0, True), (0.0, 0.22, False), (0.0, 0.23, True)],
)
def test_chance_is_allowed_for(unseen: float, overstated: float, found: bool) -> None:
    """Of 100 images 5 may be unseen and 15 overstated, and two standard errors, 4.4 and 7.1, besides."""
    measured = Fidelity(1.0, 1.0, 1.0, 1.0, 0.0, unseen, overstated, 100)
    assert (unevenly_faithful(measured) is not None) == found
    nothing = Fidelity(0.0, 0.0, 0.0, float("inf"), float("inf"))
    assert unevenly_faithful(nothing) is None


def test_preflight_says_so() -> None:
    data = nets.images(40)
    probes = replace(ONE_LOOK, images=40, batch_size=40)

    def flags(model: nn.Module) -> set[str]:
        return kinds(preflight(model, data, 8 / 255, seed=0, attack=idle, probes=probes))

    assert "unfaithful_on_some" in flags(Masked("pixels"))
    for honest in (nets.undefended(), nets.stochastic()):
        assert "unfaithful_on_some" not in flags(honest)


def committed() -> nn.Module:
    return squint.load(ROOT / "tests" / "attacks" / "weights" / "stochastic.safetensors").eval()


@pytest.mark.parametrize("eps", [8 / 255, 32 / 255])
@pytest.mark.parametrize("honest", [nets.stochastic, committed])
def test_honest_noise_passes(honest: Callable[[], nn.Module], eps: float) -> None:
    x, y = nets.images(50)
    assert unevenly_faithful(fidelity(honest(), x, y, eps, seed=0, draws=64)) is None


@pytest.mark.slow
@pytest.mark.parametrize("eps", [5 / 255, 8 / 255])
@pytest.mark.parametrize(
    ("name", "draws"),
    [
        ("full-precision", 8),
        ("deterministic", 8),
        ("empir", 8),
        ("noise", 32),
        ("stochastic-information", 32),
    ],
)
def test_trained_networks_of_cifar_pass(name: str, draws: int, eps: float) -> None:
    """The images are those beside the records: the first of the test set."""
    folder = ROOT / "results" / "cifar10" / "small"
    with np.load(folder / "examples" / "full-precision.npz") as kept:
        x, y = torch.from_numpy(kept["clean"][:16]).float() / 255, torch.from_numpy(kept["label"][:16])
    model = squint.load(folder / "weights" / f"{name}.safetensors").eval()
    assert unevenly_faithful(fidelity(model, x, y, eps, seed=0, draws=draws, chunk=8)) is None
