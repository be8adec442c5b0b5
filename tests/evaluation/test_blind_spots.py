"""Functions that hide a part of the image from their gradient, bit for bit the same, and honest ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.blind_spots import Kind, weights_of, with_gradient
from torch import Tensor, nn

from squint.evaluation.blind_spots import Influence, blind_spots, influence, unexplained_steps
from squint.evaluation.preflight import preflight
from tests.evaluation.graveyard import nets
from tests.evaluation.test_preflight import CHEAP, WHITE

EPS = 8 / 255


class Hiding(nn.Module):
    """The same function, whose gradient does not know of a share of the pixels, or not rightly."""

    draws_noise = False

    def __init__(self, net: nn.Module, share: float, kind: Kind = "hidden") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.net = net
        hidden = (torch.rand(1, 8, 8, generator=generator) < share).float()
        self.weights = weights_of(hidden, kind, torch.randint(2, (1, 8, 8), generator=generator) * 2.0 - 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(with_gradient(x, self.weights))
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
    assert found.steadiness == pytest.approx(1.0, rel=1e-4)
    assert blind_spots(found) is None
    assert unexplained_steps(found) is None


@pytest.mark.parametrize("honest", [nets.undefended, nets.stochastic, nets.empir])
@pytest.mark.parametrize("seed", [0, 1])
def test_honest_networks_pass(honest: Callable[[], nn.Module], seed: int) -> None:
    found = looked(honest(), seed)
    assert blind_spots(found) is None
    assert unexplained_steps(found) is None


@pytest.mark.parametrize(
    ("share", "kind"), [(0.3, "hidden"), (0.5, "hidden"), (0.8, "hidden"), (0.5, "tiny")]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_hidden_pixels_are_found(share: float, kind: Kind, seed: int) -> None:
    x, _ = nets.images(32)
    hiding = Hiding(nets.undefended(), share, kind)
    torch.testing.assert_close(hiding(x), nets.undefended()(x), rtol=0.0, atol=0.0)
    found = blind_spots(looked(hiding, seed))
    assert found is not None
    assert found.kind == "blind_spots"


def test_a_reversed_gradient_of_a_linear_margin_explains_what_its_signs_say() -> None:
    """Of equal weights with a share h reversed and all times 1 - 2h, corners are explained by (1 - 2h)²."""
    weights = torch.ones(1, 8, 8)
    weights[0, 4:] = 1e-3  # The half that is looked at for this lies above.
    model = Hiding(Linear(weights), 0.0)
    turned = torch.zeros(1, 8, 8)
    turned[0, :4, :2] = 1.0
    model.weights = (1 - 2 * turned) * 0.5
    x, y = torch.full((400, 1, 8, 8), 0.5), torch.zeros(400, dtype=torch.int64)
    found = influence(model, x, y, EPS, seed=0)
    assert found.others_explained == pytest.approx(0.25, abs=0.04)
    assert found.steadiness == pytest.approx(1.0, rel=1e-4)
    flag = unexplained_steps(found)
    assert flag is not None
    assert flag.kind == "unexplained_steps"


@pytest.mark.parametrize("share", [0.2, 1 / 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_reversed_pixels_are_found(share: float, seed: int) -> None:
    x, _ = nets.images(32)
    reversing = Hiding(nets.undefended(), share, "reversed")
    torch.testing.assert_close(reversing(x), nets.undefended()(x), rtol=0.0, atol=0.0)
    assert unexplained_steps(looked(reversing, seed)) is not None


def test_steps_that_round_anew_are_not_steady_and_gradients_need_not_know() -> None:
    """Five stops without anything in common: what leads to one leads away from it next, half of the time."""
    teeth = 1e4 * (1 + torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1)))

    class Rounding(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * teeth).sin())

    found = looked(Rounding(torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))), classes=2)
    assert found.steadiness == pytest.approx(-0.5, abs=0.15)
    assert unexplained_steps(found) is None


@pytest.mark.parametrize(("elsewhere", "found"), [(0.1, False), (0.3, True)])
def test_gradients_that_explain_nothing_anywhere_hide_no_part(elsewhere: float, found: bool) -> None:
    """As those of an honest EMPIR network at 2/255 do."""
    measured = Influence((0.9, 1.0), (-0.01, -0.01), elsewhere, (0.001, 0.001), 32)
    assert (blind_spots(measured) is not None) is found


def test_pixels_that_do_nothing_may_be_hidden() -> None:
    """Of a digit's border a network may know as little as its gradient does."""
    weights = torch.zeros(1, 8, 8)
    weights[0, 2:6] = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    hiding = Hiding(Linear(weights), 0.5)
    hiding.weights = (weights != 0).float()
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
