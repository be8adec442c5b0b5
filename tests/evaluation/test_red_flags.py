"""Every red flag through `preflight` or `evaluate`: models built to trip one each, and honest ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint.attacks.gradients import AnyModel
from squint.evaluation import evaluate
from squint.evaluation.active import active_tests
from squint.evaluation.budgets import PRESETS, Budget, Move, Rung
from squint.evaluation.flags import late_falls
from squint.evaluation.preflight import preflight
from squint.evaluation.preflight_runs import Probes
from squint.evaluation.records import Finding
from tests.evaluation.graveyard import nets
from tests.evaluation.test_preflight import BatchCentred, Bypassed, Magnified

EPS = 0.1
TOY = Probes(
    images=40,
    eps_factors=(1.0, 2.0),
    steps=(5, 10),
    eot=(1, 2),
    restarts=(1, 3),
    square_steps=2,
    spsa_steps=1,
    spsa_directions=1,
    transfer_steps=1,
    fidelity_draws=8,
    resubmissions=8,
    batch_size=40,
)
ONE_LOOK = replace(TOY, eps_factors=(1.0,), steps=(2,), eot=(1,), restarts=(1,), resubmissions=2)


def idle(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Stand for the white box where a flag is not about it."""
    del model, y, eps, generator
    return x


def flagged(model: AnyModel, data: tuple[Tensor, Tensor], probes: Probes, **settings: Any) -> list[Finding]:
    eps = settings.pop("eps", EPS)
    return preflight(model, data, eps, seed=0, attack=idle, probes=probes, **settings)


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


def grey(n: int = 40) -> tuple[Tensor, Tensor]:
    return torch.full((n, 1, 2, 2), 0.5), torch.zeros(n, dtype=torch.int64)


class Steered(torch.autograd.Function):
    """Margins (..., batch) whose gradient by the images is `slope` (..., batch), alike in every pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, margin: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return margin.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, slope = ctx.saved_tensors
        pulled = (grads[0] * slope).reshape(-1, len(x)).sum(0)
        return pulled.view(-1, 1, 1, 1).expand_as(x), None, None


def shift(x: Tensor) -> Tensor:
    """Return how far the mean pixel has moved from grey, in units of EPS (batch,)."""
    return (x.flatten(1).mean(1) - 0.5) / EPS


def two_logits(margin: Tensor) -> Tensor:
    return torch.stack([margin, torch.zeros_like(margin)], -1)


class Window(nn.Module):
    """Errs in a window near eps and not beyond it, while the gradient says: on, upwards."""

    def forward(self, x: Tensor) -> Tensor:
        t = shift(x)
        margin = 1 - 2 * ((t > 0.9) & (t < 1.5)).to(x)
        return two_logits(Steered.apply(x, margin, -torch.ones_like(margin)))  # type: ignore[no-untyped-call]


class Shy(nn.Module):
    """Answers `honest` gradients of an attack truly and all later ones with the sign turned.

    A query without a gradient, such as scoring makes, ends the attack.
    """

    def __init__(self, honest: int) -> None:
        super().__init__()
        self.honest, self.asked = honest, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked = self.asked + 1 if torch.is_grad_enabled() else 0
        margin = 1 - 2 * (shift(x) > 0.5).to(x)
        slope = torch.full_like(margin, -1.0 if self.asked <= self.honest else 1.0)
        return two_logits(Steered.apply(x, margin, slope))  # type: ignore[no-untyped-call]


class Cancelling(nn.Module):
    """The gradients of two draws cancel but for a little noise; one draw alone says the truth."""

    draws = 4

    def forward(self, x: Tensor) -> Tensor:
        return self.member_logits(x, self.draws).softmax(-1).mean((0, 1)).log()

    def member_logits(
        self,
        x: Tensor,
        draws: int = 4,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del stratified
        noise = 0.01 * torch.randn(draws, len(x), generator=generator)
        margin = 1 - 2 * (shift(x) > 0.5).to(x) + noise
        turned = 2.0 * (torch.arange(draws) % 2) - 1
        steered = Steered.apply(x, margin, turned[:, None].expand_as(margin))  # type: ignore[no-untyped-call]
        return two_logits(steered).unsqueeze(1)


class Lucky(nn.Module):
    """Points that always err by little; others, which one draw prefers, err by more but not in the mean."""

    draws = 64

    def forward(self, x: Tensor) -> Tensor:
        return self.member_logits(x, self.draws).softmax(-1).mean((0, 1)).log()

    def member_logits(
        self,
        x: Tensor,
        draws: int = 64,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del stratified
        sure = torch.rand(draws, 1, len(x), generator=generator) < 0.2
        # Chances of the right class: 0.475 at the first kind; 0.45 or 1 at the second, 0.56 on average.
        second = torch.where(sure, 20.0, torch.tensor(0.45 / 0.55).log())
        first = torch.tensor(0.475 / 0.525).log()
        corner = (x[:, 0, 0, 0] - 0.5) / EPS
        return two_logits(torch.where(corner < 0.3, first, second))


@pytest.mark.parametrize(
    ("kind", "model", "count"),
    [
        ("rises_with_eps", Window(), 40),
        ("rises_with_steps", Shy(7), 40),
        ("rises_with_eot", Cancelling(), 40),
        ("rises_with_restarts", Lucky(), 200),
        ("fgsm_beats_pgd", Shy(1), 40),
    ],
)
def test_a_stronger_attack_that_is_weaker_is_found(kind: str, model: nn.Module, count: int) -> None:
    found = flagged(model.eval(), grey(count), replace(TOY, images=count, batch_size=count))
    assert kind in kinds(found)
    assert kinds(found) & COMPARED - {kind} <= ALSO.get(kind, set())


COMPARED = {"rises_with_eps", "rises_with_steps", "rises_with_eot", "rises_with_restarts", "fgsm_beats_pgd"}
ALSO = {
    "rises_with_eps": {"fgsm_beats_pgd"},
    "rises_with_steps": {"rises_with_eot"},
    "rises_with_restarts": {"fgsm_beats_pgd"},
}
"""What a model cannot help tripping too: two draws ask twice as often, FGSM starts at the image itself."""


class Dark(nn.Module):
    """An honest network whose gradient is `factor` times its own on dark images."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.network, self.factor = nets.undefended(), factor

    def forward(self, x: Tensor) -> Tensor:
        other = Magnified.apply(x, self.factor)  # type: ignore[no-untyped-call]
        return cast(Tensor, self.network(torch.where(brightness(x) < 0.31, other, x)))


def brightness(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1).view(-1, 1, 1, 1)


def test_the_gradient_is_looked_at_beyond_the_first_images() -> None:
    """Bright images come first: a look at one batch from the front would see none that hides anything."""
    x, y = nets.images(40)
    order = brightness(x).flatten().argsort(descending=True)
    data, probes = (x[order], y[order]), replace(ONE_LOOK, batch_size=10)
    dark = float((brightness(x) < 0.31).double().mean())
    assert brightness(data[0][:10]).min() > 0.31
    assert dark > 0.4
    found = flagged(Dark(0.0), data, probes, eps=0.05)
    (missing,) = (finding for finding in found if finding.kind == "zero_gradients")
    assert missing.measured["share"] == pytest.approx(dark), "every image is looked at"
    assert "unfaithful_gradient" in kinds(flagged(Dark(0.1), data, probes, eps=0.05))
    assert not kinds(flagged(Dark(1.0), data, probes, eps=0.05)) & {"zero_gradients", "unfaithful_gradient"}


def dead_width() -> nn.Module:
    net = squint.quantize(nets.small_cnn(0), 4, 4, 2, learn_width=True)
    squint.calibrate(net, nets.images(20)[0])
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, squint.StochasticQuantizer) and isinstance(part.width, nn.Parameter):
                part.width.fill_(0.1)
    return net.eval()


class Halved(nn.Module):
    """An honest network that shows half of its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, nets.undefended()(Magnified.apply(x, 0.5)))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("zero_surrogate", lambda: Bypassed().eval()),
        ("dead_width", dead_width),
        ("unfaithful_gradient", Halved),
        ("batch_dependence", BatchCentred),
        ("probabilities", lambda: nn.Sequential(nets.undefended(), nn.Softmax(-1)).eval()),
    ],
)
def test_flags_of_the_model_come_through_preflight(kind: str, make: Callable[[], nn.Module]) -> None:
    assert kind in kinds(flagged(make(), nets.images(20), ONE_LOOK, eps=0.05))
    for honest in (nets.undefended(), nets.stochastic()):
        assert kind not in kinds(flagged(honest, nets.images(20), ONE_LOOK, eps=0.05))


@pytest.mark.slow
@pytest.mark.parametrize("honest", [nets.undefended, nets.stochastic])
def test_an_honest_model_raises_no_flag_at_the_default_probes(honest: Callable[[], nn.Module]) -> None:
    assert preflight(honest(), nets.images(200), nets.EPS, seed=0, sources=[nets.undefended()]) == []


def test_a_fall_to_black_boxes_alone_is_suspected() -> None:
    gradients, search = Rung("pgd", (Move("pgd", 1, 1),)), Rung("black box", (Move("square", 1, 1),))
    mixed = Rung("paths", (Move("spsa", 1, 1), Move("view_pgd", 1, 1)))
    broken = torch.tensor([2] * 9 + [1] * 50 + [-1] * 41)
    (finding,) = late_falls(broken, (gradients, search))
    assert finding.kind == "masking_suspected"
    assert finding.measured == {"rung": "black box", "share": 0.09, "allowed": 0.08, "n": 100}
    broken[0] = -1
    assert late_falls(broken, (gradients, search)) == [], "8 of 100 are allowed"
    assert late_falls(torch.full((100,), 2), (gradients, mixed)) == [], "a gradient may have done it"


@pytest.mark.parametrize(("make", "suspected"), [(nets.zero_gradient, True), (nets.undefended, False)])
def test_a_network_that_falls_late_is_suspected_in_its_record(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module], suspected: bool
) -> None:
    gradients = (Move("pgd", 20, 1), Move("targeted", 20, 1, "random", refine=40))
    rungs = (Rung("gradients", gradients), Rung("black box", (Move("transfer", 20, 1, "random"),)))
    monkeypatch.setitem(PRESETS, "quick", Budget("quick", rungs, resubmissions=4))
    monkeypatch.setattr("squint.evaluation.ladder_report.preflight", lambda *_, **__: [])
    report = evaluate(make(), nets.images(30), nets.EPS, "quick", sources={"plain": nets.undefended()})
    assert report.records[0].robust_accuracy < 0.2
    assert ("masking_suspected" in {flag.kind for flag in report.records[0].red_flags}) == suspected


class OnLevels(nn.Module):
    """Right where a bright first pixel marks the image and the second lies on an 8-bit level."""

    def forward(self, x: Tensor) -> Tensor:
        level = 255 * x[:, 0, 0, 1]
        right = (x[:, 0, 0, 0] > 0.5) & ((level - level.round()).abs() < 1e-3)
        return two_logits(2 * right.to(x) - 1)


@pytest.mark.parametrize(("kept", "found"), [(5, False), (6, True)])
def test_the_control_may_keep_five_percent(kept: int, found: bool) -> None:
    """Without noise no image lies on a level; 8-bit rounding puts all of them there."""
    x, y = torch.full((100, 1, 2, 2), 127.8 / 255), torch.zeros(100, dtype=torch.int64)
    x[:, 0, 0, 0] = (torch.arange(100) < kept).float()
    result = active_tests(
        OnLevels(), (x, y), 0.1, seed=0, attack=idle, undefended=OnLevels().eval(), images=100, planted=1,
        resubmissions=2,
    )  # fmt: skip
    assert result.control_accuracy == pytest.approx(kept / 100)
    assert ("noise_control" in kinds(list(result.findings))) == found
