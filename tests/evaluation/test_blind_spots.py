"""Functions that hide a part of the image from their gradient, bit for bit the same, and honest ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.blind_spots import hidden_from_gradients
from torch import Tensor, nn

from squint.evaluation.blind_spots import Influence, blind_spots, influence
from squint.evaluation.preflight import preflight
from tests.evaluation.graveyard import nets
from tests.evaluation.test_preflight import CHEAP, WHITE

EPS = 8 / 255


class Hiding(nn.Module):
    """The same function, whose gradient does not know of a share of the pixels, or has wrong signs there."""

    draws_noise = False

    def __init__(self, net: nn.Module, share: float, tiny: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.net = net
        self.hidden = (torch.rand(1, 8, 8, generator=generator) < share).float()
        self.signs = torch.randint(2, (1, 8, 8), generator=generator) * 2.0 - 1 if tiny else None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(hidden_from_gradients(x, self.hidden, self.signs))
        return logits


class Linear(nn.Module):
    """Two classes, whose margin is linear in the image with given weights (1, 8, 8)."""

    draws_noise = False

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        margin = (x * self.weights).flatten(1).sum(1)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def looked(model: nn.Module, seed: int = 0, classes: int = 10) -> Influence:
    x, y = nets.images(32)
    return influence(model, x, y % classes, EPS, seed=seed)


def test_a_linear_margin_is_explained_to_rounding_and_its_effect_is_that_of_its_weights() -> None:
    weights = torch.arange(1.0, 65.0).view(1, 8, 8)
    x, y = torch.full((400, 1, 8, 8), 0.5), torch.zeros(400, dtype=torch.int64)
    found = influence(Linear(weights), x, y, EPS, seed=0)
    assert found.explained == pytest.approx((1.0, 1.0), rel=1e-4)
    assert found.others_explained == pytest.approx(1.0, rel=1e-4)
    # Random signs: the mean square of their sum is the sum of squares. 800 sums know it to 5 %.
    square = weights.flatten().square()
    expected = [float((square[:k].sum() / square[32:].sum()).sqrt()) for k in (16, 32)]
    assert found.effects == pytest.approx(expected, rel=0.15)
    assert blind_spots(found) is None


@pytest.mark.parametrize("honest", [nets.undefended, nets.stochastic, nets.empir])
@pytest.mark.parametrize("seed", [0, 1])
def test_honest_networks_pass(honest: Callable[[], nn.Module], seed: int) -> None:
    assert blind_spots(looked(honest(), seed)) is None


@pytest.mark.parametrize(("share", "tiny"), [(0.3, False), (0.5, False), (0.8, False), (0.5, True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_pixels_are_found(share: float, tiny: bool, seed: int) -> None:
    x, _ = nets.images(32)
    hiding = Hiding(nets.undefended(), share, tiny)
    torch.testing.assert_close(hiding(x), nets.undefended()(x))
    found = blind_spots(looked(hiding, seed))
    assert found is not None
    assert found.kind == "blind_spots"


def test_pixels_that_do_nothing_may_be_hidden() -> None:
    """Of a digit's border a network may know as little as its gradient does."""
    weights = torch.zeros(1, 8, 8)
    weights[0, 2:6] = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    hiding = Hiding(Linear(weights), 0.5)
    hiding.hidden = (weights == 0).float()
    found = looked(hiding, classes=2)
    assert found.effects[0] == 0.0
    assert blind_spots(found) is None


def test_images_without_finite_margins_are_left_out() -> None:
    class Half(Linear):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.where(torch.arange(len(x))[:, None] % 2 == 0, logits, float("nan"))

    weights = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert looked(Half(weights), classes=2).images < 32


def test_preflight_says_so_and_reports_what_it_measured() -> None:
    measured: dict[str, object] = {}
    probes = replace(CHEAP, images=40)
    hiding = Hiding(nets.undefended(), 0.5)
    arguments = {"eps": nets.EPS, "seed": 0, "attack": WHITE, "probes": probes}
    found = preflight(hiding, nets.images(40), measured=measured, **arguments)  # type: ignore[arg-type]
    assert "blind_spots" in {finding.kind for finding in found}
    assert measured.keys() == {"left", "fidelity", "influence"}
    left = measured["left"]
    assert isinstance(left, dict)
    assert {"the white box", "FGSM", "SPSA", "Square", "PGD with 10 steps"} <= left.keys()
    assert all(0.0 <= share <= 1.0 for share in left.values())


def test_what_was_measured_of_a_masked_model_can_be_written() -> None:
    """The ratio of predicted and actual rise is infinite where the loss stands still."""
    measured: dict[str, Any] = {}
    arguments = {"eps": nets.EPS, "seed": 0, "attack": WHITE, "probes": CHEAP}
    preflight(nets.zero_gradient(), nets.images(40), measured=measured, **arguments)  # type: ignore[arg-type]
    assert measured["fidelity"]["ratio"] is None
    assert json.loads(json.dumps(measured, allow_nan=False))["fidelity"] == measured["fidelity"]


def test_a_figure_that_preflight_beats_is_found() -> None:
    """Clean images stand for the points of a ladder that does nothing."""
    images = nets.images(40)
    arguments = {"eps": nets.EPS, "seed": 0, "attack": WHITE, "probes": CHEAP}
    flags = preflight(nets.undefended(), images, worst=images[0], **arguments)  # type: ignore[arg-type]
    beaten = [flag for flag in flags if flag.kind == "ladder_beaten"]
    assert "the white box" in {flag.measured["lower"] for flag in beaten}
    assert all(flag.measured["upper"] == "the ladder" for flag in beaten)
