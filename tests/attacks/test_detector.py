from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from squint._checks import InputError
from squint.attacks.detector import agreement, lagrangian, orthogonal, orthogonal_step, selective
from squint.attacks.geometry import Ball
from squint.attacks.pgd import pgd
from squint.attacks.pursuit import DeployedDetector, Pursuit
from squint.evaluation.detection.scores import total_information
from tests.attacks.models import NoisyLinear, interior_images

Attack = Callable[..., Tensor]
ATTACKS: dict[str, Attack] = {
    "selective": selective,
    "orthogonal": orthogonal,
    "lagrangian": lagrangian,
    "agreement": agreement,
}


class Corridor(torch.nn.Module):
    """Two classes by the first pixel; the second pixel is what the detector sees, in a third output.

    The score (x₂ − ½ + (x₁ − ½))² is 0 along a line, so an attacker who raises x₁ has to lower x₂ by as much.
    """

    def forward(self, x: Tensor) -> Tensor:
        first, second = x[:, 0] - 0.5, x[:, 1] - 0.5
        return torch.stack([-20 * first, 20 * first, first + second], 1)


def known(threshold: float = 4e-4) -> DeployedDetector:
    return DeployedDetector(lambda outputs: outputs[..., 2].square().mean((0, 1)), threshold, 1, None, 2)


@pytest.mark.parametrize("case", range(20))
def test_orthogonality_holds_for_the_step_that_is_taken(case: int) -> None:
    generator = torch.Generator().manual_seed(case)
    x = torch.rand(16, 3, 4, 4, generator=generator)
    ball = Ball(x, 0.1)
    # Points on the ball's faces and corners, where projection swallows much of a step.
    point = ball.project(x + 0.3 * torch.randn(x.shape, generator=generator))
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    o = -v + case / 10 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    o[0], v[1] = 0.0, 0.0
    taken = (orthogonal_step(ball, point, v, o, 0.01) - point).double()
    assert ((o * taken).flatten(1).sum(1) >= -1e-12).all()
    naive = (ball.project(point + 0.01 * v.sign().float()) - point).double()
    free = (o * naive).flatten(1).sum(1) >= 0
    assert not free.all()
    assert torch.equal(taken[free], naive[free])
    assert ((orthogonal_step(ball, point, v, o, 0.01) - x).abs() <= 0.1 + 1e-6).all()


def test_the_orthogonal_step_has_the_smallest_multiplier(generator: torch.Generator) -> None:
    x = interior_images((50, 12), generator)
    ball = Ball(x, 0.02)
    point = ball.random_point(generator)
    v = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    o = -v + 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    found = orthogonal_step(ball, point, v, o, 0.01)
    for row in range(len(x)):
        multipliers = [0.0, *sorted((v[row].abs() / o[row].abs()).mul(1 + 1e-9).tolist())]
        for multiplier in multipliers:
            expected = ball.project(point + 0.01 * (v + multiplier * o).sign().float())[row]
            if float((o[row] * (expected - point[row]).double()).sum()) >= 0:
                break
        assert torch.equal(found[row], expected)


def test_a_blend_is_the_weighted_sum_of_both_gradients(generator: torch.Generator) -> None:
    model = NoisyLinear(3, 24, 4, 0.3)
    x = interior_images((6, 24), generator)
    y = torch.arange(6) % 4
    detector = DeployedDetector(total_information, 0.1, 4)
    pursuit = Pursuit(model, x, y, detector, 0.1, None, 8, None, 10, generator, None)
    weights = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    state = generator.get_state()
    lead, f, score, g = pursuit.slopes(x)
    generator.set_state(state)
    seen: list[Tensor] = []

    def weigh(*values: Tensor) -> tuple[Tensor, Tensor]:
        seen.extend(values)
        return weights[0], weights[1]

    expected = weights[0].unsqueeze(1) * f + weights[1].unsqueeze(1) * g
    # The network is linear in float32, and both sums are: their difference is its rounding.
    torch.testing.assert_close(pursuit.blend(x, weigh), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(seen[0], lead)
    assert torch.equal(seen[1], score)


@pytest.mark.parametrize("name", ["selective", "orthogonal", "lagrangian"])
def test_an_attack_that_knows_the_detector_evades_it(name: str, generator: torch.Generator) -> None:
    x = torch.full((8, 2), 0.5) + torch.tensor([-0.05, 0.05]) + 0.01 * torch.rand(8, 2, generator=generator)
    y = torch.zeros(8, dtype=torch.int64)
    model, detector = Corridor(), known()
    plain = pgd(lambda x: model(x)[:, :2], x, y, eps=0.15, steps=20, random_start=False, generator=generator)
    outputs = model(plain)[None, None]
    assert detector.wrong(outputs, y).all()
    assert not detector.evades(outputs, y).any()
    found = ATTACKS[name](
        model, x, y, detector=detector, eps=0.15, steps=160, eot=1, check_every=2, generator=generator
    )
    assert detector.evades(model(found)[None, None], y).all()
    assert ((found - x).abs() <= 0.15 + 1e-6).all()


def test_agreement_makes_all_draws_agree_on_a_wrong_class(generator: torch.Generator) -> None:
    model = NoisyLinear(3, 24, 4, 0.3)
    x = interior_images((12, 24), generator)
    clean = model.member_logits(x, 64, generator=generator).detach()
    y = clean.double().softmax(-1).mean((0, 1)).argmax(-1)
    detector = DeployedDetector(total_information, float(total_information(clean).median()), 4)
    agreed = agreement(model, x, y, detector=detector, eps=0.25, steps=45, eot=8, generator=generator)
    drawn = model.member_logits(agreed, 4 * 64, generator=generator)
    plain = pgd(model, x, y, eps=0.25, steps=1, step_size=0.1, eot=8, generator=generator)
    before = model.member_logits(plain, 4 * 64, generator=generator)
    assert detector.wrong(drawn, y).double().mean() > 0.9
    assert detector.scores(drawn).mean() < detector.scores(before).mean()
    assert detector.evades(drawn, y).double().mean() > detector.evades(before, y).double().mean()


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attacks_are_reproducible_stay_in_the_ball_and_never_lose_their_start(name: str) -> None:
    model = NoisyLinear(2, 24, 3, 0.2)
    generator = torch.Generator().manual_seed(1)
    x = interior_images((6, 1, 4, 6), generator)
    y = model.member_logits(x, 16, generator=generator).mean((0, 1)).argmax(-1)
    detector = DeployedDetector(total_information, 0.05, 2)
    start = pgd(model, x, y, eps=0.1, generator=generator)

    def run() -> Tensor:
        seeded = torch.Generator().manual_seed(2)
        return ATTACKS[name](
            model, x, y, detector=detector, eps=0.1, steps=16, eot=4, start=start, generator=seeded
        )

    found = run()
    assert torch.equal(found, run())
    assert ((found - x).abs() <= 0.1 + 1e-6).all()
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    rates = [
        detector.evades(model.member_logits(p, 400, generator=torch.Generator().manual_seed(3)), y)
        .double()
        .mean()
        for p in (start, found)
    ]
    # Two means of 200 deployments of 6 images: a standard error of at most 0.02 each.
    assert rates[1] >= rates[0] - 4 * 0.03


def test_deployments_are_scored_one_by_one(generator: torch.Generator) -> None:
    outputs = torch.randn(12, 2, 5, 4, generator=generator)
    detector = DeployedDetector(total_information, 0.3, 3)
    parts = [outputs[first : first + 3] for first in range(0, 12, 3)]
    alone = torch.stack([total_information(part) for part in parts])
    torch.testing.assert_close(detector.scores(outputs), alone, rtol=1e-12, atol=1e-14)
    y = torch.arange(5) % 4
    wrong = torch.stack([part.double().softmax(-1).mean((0, 1)).argmax(-1) != y for part in parts])
    assert torch.equal(detector.wrong(outputs, y), wrong)
    assert torch.equal(detector.evades(outputs, y), wrong & (alone <= 0.3))


def test_the_gradient_of_the_score_averages_deployments(generator: torch.Generator) -> None:
    model = NoisyLinear(2, 6, 3, 0.0)
    x = interior_images((4, 6), generator)
    y = torch.zeros(4, dtype=torch.int64)
    detector = DeployedDetector(total_information, 0.1, 2)
    hunt = Pursuit(model, x, y, detector, 0.1, None, 6, None, 10, generator, 2)
    _, _, score, g = hunt.slopes(x)
    leaf = x.double().requires_grad_()
    weight = model.weight.detach().double()
    z = torch.einsum("bf,mcf->mbc", leaf, weight)[None].expand(2, -1, -1, -1)
    expected = total_information(z)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    # The network runs in float32, with noise of half a step of 2^-16.
    torch.testing.assert_close(score, expected.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(g, slope, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eot": 5}, "eot is 5; allowed: a multiple of the deployed draws, 2"),
        ({"steps": 0}, "steps is 0"),
        ({"eps": 2.0}, "eps is 2.0"),
        ({"check_every": 0}, "check_every is 0"),
    ],
)
def test_bad_budgets_are_named(change: dict[str, float], message: str) -> None:
    model = NoisyLinear(2, 6, 3, 0.1)
    options = {"eps": 0.1, "steps": 4, "eot": 4, **change}
    x = torch.full((2, 6), 0.5)
    with pytest.raises(InputError, match=message):
        selective(
            model,
            x,
            torch.zeros(2, dtype=torch.int64),
            detector=DeployedDetector(total_information, 0.1, 2),
            **options,  # type: ignore[arg-type]
        )
