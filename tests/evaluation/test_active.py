from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint import InputError, attacks
from squint._checks import parse_fraction
from squint.attacks.gradients import AnyModel
from squint.evaluation.active import LARGEST_RADIUS, _deployed, active_tests
from squint.evaluation.active_findings import gained, judge_control, judge_gain, judge_planted, notes_on
from squint.evaluation.control import noisy_control
from squint.evaluation.planted import plant
from squint.evaluation.scoring import deployed_draws, score
from squint.evaluation.white_box import WhiteBox
from tests.evaluation.graveyard import nets
from tests.evaluation.ladder_models import Coin, small_ensemble

WEAK = WhiteBox(steps=3, eot=1)


def lazy(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Noise in place of an attack."""
    del model, y
    return attacks.random_noise(x, eps=eps, generator=generator)


def test_double_is_twice_the_steps_restarts_and_draws() -> None:
    assert WhiteBox(steps=8, eot=3).doubled() == WhiteBox(steps=16, restarts=2, eot=6)


@pytest.mark.parametrize(("name", "eot"), [("undefended", 1), ("stochastic", 8)])
def test_a_sound_attack_passes_on_an_honest_model(name: str, eot: int) -> None:
    model = getattr(nets, name)()
    result = active_tests(
        model,
        nets.images(20),
        0.25,
        seed=0,
        attack=WhiteBox(steps=8, eot=eot),
        doubled=WhiteBox(steps=8, eot=eot).doubled(),
        undefended=nets.undefended(),
        planted=20,
        resubmissions=16,
    )
    assert result.findings == ()
    assert result.passed
    assert result.planted_total >= 10
    assert result.planted_found >= 0.95 * result.planted_total
    assert result.convergence_gain is not None
    assert result.convergence_gain < 0.01
    assert result.control_accuracy == pytest.approx(0.0, abs=0.01)
    assert result.control_bare is not None
    assert result.control_bare <= 0.05
    assert result.control_eps is not None
    assert result.notes == ()


def test_the_control_of_an_attack_that_does_nothing_says_nothing() -> None:
    """Behind noise and without it the network keeps the same: at no radius does that speak for the attack."""
    net = nets.undefended()
    result = active_tests(
        net, nets.images(20), nets.EPS, seed=0, attack=lazy, undefended=net, planted=1, resubmissions=4
    )
    (finding,) = [each for each in result.findings if "control" in each.kind]
    assert finding.kind == "control_uninformative"
    assert finding.measured == {
        "noisy": result.control_accuracy, "bare": result.control_bare, "eps": result.control_eps
    }  # fmt: skip
    assert result.control_bare is not None
    assert result.control_bare > 0.05
    assert parse_fraction("eps", result.control_eps or 0.0) == pytest.approx(LARGEST_RADIUS, abs=1e-3)


def test_the_control_is_asked_where_the_bare_network_falls() -> None:
    """At a radius that leaves the bare network much, noise that holds the attack up would not be seen."""

    def stopped_by_noise(
        model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator
    ) -> Tensor:
        attack = lazy if isinstance(model, squint.Ensemble) else WEAK
        return attack(model, x, y, eps, generator)

    net = nets.undefended()
    for attack, found in ((WEAK, False), (stopped_by_noise, True)):
        result = active_tests(
            net, nets.images(20), "1/255", seed=0, attack=attack, undefended=net, planted=1, resubmissions=4
        )
        assert ("noise_control" in {finding.kind for finding in result.findings}) == found
        assert result.control_bare is not None
        assert result.control_bare <= 0.05
        assert result.control_eps not in (None, "1/255")


def test_too_small_a_share_of_sound_points_is_no_test() -> None:
    """Which points are sound can hang on the gradient: those left may be the ones that any attack finds."""
    (finding,) = judge_planted(24, 24, 50)
    assert finding.kind == "planted_unavailable"
    assert finding.measured == {"total": 24, "tried": 50, "needed": 25}
    assert "in 24 of 50 images" in finding.message
    assert judge_planted(25, 25, 50) == []
    assert [finding.kind for finding in judge_planted(9, 9, 9)] == ["planted_unavailable"]


def test_the_gate_looks_at_every_image_that_is_not_retired() -> None:
    """An image of which 70 % of deployments err still has 30 % to lose."""
    model = Coin(0.7)
    x, y = torch.full((40, 1, 2, 2), 0.4), torch.zeros(40, dtype=torch.int64)
    reached: list[int] = []

    def counted(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        del model, y, eps, generator
        reached.append(len(x))
        return x

    active_tests(
        model, (x, y), 0.1, seed=0, attack=lazy, doubled=counted, planted=1, draws=1, resubmissions=64,
        images=40, found=x,
    )  # fmt: skip
    assert reached == [40]


def test_attacks_are_asked_under_the_deployed_rule() -> None:
    model = small_ensemble(2)
    own = model.draws
    alike = _deployed(model, own + 3)
    assert (deployed_draws(alike), deployed_draws(model)) == (own + 3, own)
    assert isinstance(alike, squint.Ensemble)
    assert alike.members is model.members
    assert _deployed(model, own) is model


def test_planted_copies_with_more_draws_are_said_beside_the_figure() -> None:
    assert notes_on(4, 4) == ()
    (note,) = notes_on(16, 4)
    assert "up to 16 draws" in note
    assert "from the 4" in note


def test_an_attack_that_does_nothing_fails_all_three() -> None:
    result = active_tests(
        nets.undefended(),
        nets.images(30),
        nets.EPS,
        seed=0,
        attack=lazy,
        doubled=WEAK,
        planted=20,
        resubmissions=16,
    )
    assert not result.passed
    assert result.planted_total == 20
    assert {finding.kind for finding in result.findings} == {"planted_missed", "not_converged"}
    assert result.convergence_gain is not None
    assert result.convergence_gain > 0.5


def test_noise_that_stops_only_the_attack_is_found_out() -> None:
    def stopped_by_noise(
        model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator
    ) -> Tensor:
        attack = lazy if isinstance(model, squint.Ensemble) else WEAK
        return attack(model, x, y, eps, generator)

    result = active_tests(
        nets.undefended(),
        nets.images(20),
        nets.EPS,
        seed=0,
        attack=stopped_by_noise,
        undefended=nets.undefended(),
        planted=10,
        resubmissions=8,
    )
    assert {finding.kind for finding in result.findings} == {"noise_control", "no_convergence_gate"}


def test_a_hidden_gradient_hides_the_planted_points_too() -> None:
    def pgd(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        return attacks.pgd(model, x, y, eps=eps, generator=generator)

    result = active_tests(
        nets.zero_gradient(),
        nets.images(20),
        nets.EPS,
        seed=0,
        attack=pgd,
        doubled=pgd,
        planted=20,
        resubmissions=8,
    )
    assert "planted_missed" in {finding.kind for finding in result.findings}


def test_a_model_without_a_layer_to_refit_is_never_passed() -> None:
    net = nets.undefended()
    convolution = nn.Conv2d(1, 10, 1)
    # Chance in the weights could make the second noise better than the first: another finding.
    nn.init.zeros_(convolution.weight)
    flat = nn.Sequential(nn.AvgPool2d(8), convolution, nn.Flatten()).eval()
    for model in (lambda x: net(x), flat):
        result = active_tests(
            model, nets.images(10), nets.EPS, seed=0, attack=lazy, doubled=lazy, resubmissions=4
        )
        assert (result.planted_found, result.planted_total) == (0, 0)
        assert [finding.kind for finding in result.findings] == ["planted_unavailable"]
        assert not result.passed


def test_planted_points_are_what_they_are_said_to_be() -> None:
    x, y = nets.images(20)
    model = nets.stochastic()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trap = plant(model, x, y, nets.EPS, num_classes=10, draws=4, resubmissions=16, seed=0)
    moved = (trap.points - x).abs()
    assert float(moved.max()) <= nets.EPS + 1e-6
    at_corner = (moved - nets.EPS).abs() < 1e-6
    at_end = (trap.points == 0) | (trap.points == 1)
    assert bool((at_corner | at_end).all())
    for points, right in ((x, True), (trap.points, False)):
        fresh = score(trap.model, points, y, draws=4, resubmissions=64, seed=9, keys=()).correct[trap.sound]
        # 0.9 right and 0.75 wrong on 16 deployments; three standard errors of 16 below that on fresh ones.
        assert bool((fresh > 0.9 - 0.23).all()) if right else bool((fresh < 0.25 + 0.33).all())
    assert bool(trap.sound.any())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_planted_model_refuses_a_batch_that_is_not_its_own() -> None:
    x, y = nets.images(6)
    trap = plant(nets.undefended(), x, y, nets.EPS, num_classes=10, draws=1, resubmissions=1, seed=0)
    logits = cast(nn.Module, trap.model)(x.repeat(2, 1, 1, 1))
    assert torch.allclose(logits[:6], logits[6:], atol=1e-5)
    with pytest.raises(InputError, match="planted batches of 1"):
        cast(nn.Module, trap.model)(x[:4])


def test_the_control_is_a_copy_behind_noise() -> None:
    net = nets.undefended()
    control = noisy_control(net)
    x = nets.images(4)[0] * 0.99 + 0.001  # stochastic rounding to 8 bits leaves 8-bit pixels as they are
    spread = control.member_logits(x, 8, generator=torch.Generator().manual_seed(0)).std(0)
    assert float(spread.max()) > 0
    assert not {id(p) for p in control.parameters()} & {id(p) for p in net.parameters()}


@pytest.mark.parametrize("survivors", range(1, 101))
def test_a_point_lost_is_a_point_whatever_survived(survivors: int) -> None:
    losses = torch.zeros(survivors)
    losses[0] = 1.0
    assert judge_gain(gained(losses, survivors, 100))
    assert not judge_gain(gained(0.99 * losses, survivors, 100))


def test_a_control_that_errs_anyhow_says_nothing() -> None:
    (finding,) = judge_control(0.03, 0.03, 0.1, clean=0.12)
    assert finding.kind == "control_uninformative"
    assert "right on 12.0% of the clean images" in finding.message
    assert judge_control(0.03, 0.03, 0.1, clean=0.9) == []
