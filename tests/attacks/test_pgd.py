from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from squint import attacks
from squint._checks import InputError
from squint.attacks.geometry import Ball, step_sizes
from tests.attacks.models import Linear, NoisyLinear, interior_images

Attack = Callable[..., Tensor]
SHAPES = [(2, 1), (3, 4), (1, 5, 5), (3, 4, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "attack",
    [
        attacks.fgsm,
        attacks.pgd,
        partial(attacks.pgd, momentum=0.75, step_size=0.1, final_step_size=1e-3),
        partial(attacks.pgd, loss="mean_logits_margin", eot=3),
    ],
    ids=["fgsm", "pgd", "momentum", "mean-logits"],
)
def test_a_targeted_attack_finds_the_optimum_of_a_linear_model(
    attack: Attack, norm: str, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    x = interior_images((20, *shape), generator)
    model = Linear(shape, 3, generator).eval()
    logits = model(x).detach()
    y = logits.argmax(1)
    target = (y + 1) % 3
    eps = 0.05 if norm == "linf" else 0.1
    options = {"loss": "margin", **(attack.keywords if isinstance(attack, partial) else {})}
    found = attack(model, x, y, eps=eps, norm=norm, targets=target, generator=generator, **options)
    reached = _margin(model(found).detach(), y, target)
    optimum = model.worst_margins(x, y, eps, norm).gather(1, target[:, None])[:, 0]
    assert (reached - optimum <= 0.01 * (_margin(logits, y, target) - optimum)).all()
    assert (reached - optimum >= -1e-4).all()


def _margin(logits: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (logits.gather(1, y[:, None]) - logits.gather(1, c[:, None]))[:, 0]


GRADIENT: dict[str, Attack] = {
    "pgd": attacks.pgd,
    "apgd": partial(attacks.apgd, steps=40),
    "targeted": partial(attacks.targeted, eot=2),
    "apgd_targeted": partial(attacks.apgd_targeted, steps=50, loss="margin"),
    "member_pgd": attacks.member_pgd,
    "arc": partial(attacks.arc, restarts=2),
    "mora": partial(attacks.mora, steps=20),
}
SEARCH: dict[str, Attack] = {
    "spsa": partial(attacks.spsa, steps=20, directions=32),
    "square": partial(attacks.square, steps=500),
}
EXPECTED = [(name, norm, 0.99) for name in GRADIENT for norm in ("linf", "l2")]
EXPECTED = [case for case in EXPECTED if case[:2] not in (("arc", "l2"), ("mora", "l2"))]
# A random direction would reach 0.2 of the optimum in L∞ and in L2.
EXPECTED += [("spsa", "linf", 0.8), ("spsa", "l2", 0.8), ("square", "linf", 0.85), ("square", "l2", 0.45)]


@pytest.mark.parametrize(("name", "norm", "share"), EXPECTED)
def test_attacks_find_the_optimum_of_a_two_class_model(
    name: str, norm: str, share: float, generator: torch.Generator
) -> None:
    x = interior_images((8, 2, 4, 4), generator)
    model = NoisyLinear(1, 32, 2, 0.0)
    logits = model(x).detach()
    y = logits.argmax(1)
    eps = 0.05 if norm == "linf" else 0.2
    options = {} if name in ("arc", "mora") else {"norm": norm}
    found = (GRADIENT | SEARCH)[name](model, x, y, eps=eps, generator=generator, **options)
    before, after = _margin(logits, y, 1 - y), _margin(model(found).detach(), y, 1 - y)
    weight = model.weight.detach()[0]
    gain = (before - after) / (eps * _length(weight[0] - weight[1], 1 if norm == "linf" else 2))
    assert (gain > share).all()
    assert (gain < 1 + 1e-4).all()


def _length(weight: Tensor, order: int) -> Tensor:
    return weight.abs().pow(order).sum().pow(1 / order)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [attacks.pgd, attacks.apgd], ids=["pgd", "apgd"])
def test_noise_in_the_model_does_not_move_the_optimum(
    attack: Attack, norm: str, generator: torch.Generator
) -> None:
    # Noise that adds to the logits leaves the expected margin linear: the optimum is that without noise.
    model = NoisyLinear(2, 12, 2, 1.0)
    with torch.no_grad():
        model.weight[1] = model.weight[0]
    x = interior_images((8, 3, 2, 2), generator)
    y = torch.tensor([0, 1] * 4)
    eps = 0.05 if norm == "linf" else 0.1
    found = attack(model, x, y, eps=eps, norm=norm, eot=4, loss="mean_logits_margin", generator=generator)
    weight = model.weight.detach()[0, 0] - model.weight.detach()[0, 1]
    change = (found - x).flatten(1) @ weight * (1 - 2 * y)
    optimum = -eps * _length(weight, 1 if norm == "linf" else 2)
    torch.testing.assert_close(change, optimum.expand(8), rtol=0.01, atol=0)


def test_one_restart_returns_the_last_iterate_at_the_stated_cost(generator: torch.Generator) -> None:
    x, y = interior_images((4, 3, 2, 2), generator), torch.tensor([0, 1, 2, 0])
    model = Linear((3, 2, 2), 3, generator)
    attacks.pgd(model, x, y, eps=0.1, steps=7, eot=3, generator=generator)
    assert model.calls == 7 * 3
    model.calls = 0
    attacks.fgsm(model, x, y, eps=0.1, eot=4, generator=generator)
    assert model.calls == 4
    model.calls = 0
    attacks.pgd(model, x, y, eps=0.1, steps=2, restarts=3, eot=2, generator=generator)
    assert model.calls == 3 * 2 * 2 + 3 * 2


def test_restarts_keep_the_best_point_of_each_example(generator: torch.Generator) -> None:
    # A bump on one side only: the loss has two basins, and starts on the flat side never leave it.
    def model(x: Tensor) -> Tensor:
        bump = torch.relu(x.flatten(1)[:, 0] - 0.5)
        return torch.stack([1 - 10 * bump, torch.zeros_like(bump)], 1)

    x, y = torch.full((64, 1, 1, 1), 0.5), torch.zeros(64, dtype=torch.long)
    once = attacks.pgd(model, x, y, eps=0.2, generator=generator)
    often = attacks.pgd(model, x, y, eps=0.2, restarts=12, generator=generator)
    broken = [(model(found)[:, 1] > model(found)[:, 0]).float().mean() for found in (once, often)]
    # Half of the starts succeed: 64 of them within four standard errors, and 2^-12 fail twelve times.
    assert abs(broken[0] - 0.5) < 0.25
    assert broken[1] > 0.95


def test_starts(generator: torch.Generator) -> None:
    x = interior_images((4, 3, 2, 2), generator)
    ball = Ball(x, 0.1)
    far = torch.ones_like(x)
    assert torch.equal(ball.first_point(0, far, True, generator), ball.project(far))
    assert torch.equal(ball.first_point(0, None, False, generator), x)
    assert not torch.equal(ball.first_point(1, far, False, generator), ball.project(far))
    with pytest.raises(InputError, match=r"start has shape \(2, 3, 2, 2\)"):
        attacks.pgd(Linear((3, 2, 2), 3, generator), x, torch.zeros(4).long(), eps=0.1, start=x[:2])


def test_l2_random_points_fill_the_ball_uniformly(generator: torch.Generator) -> None:
    x = torch.full((4000, 1, 1, 3), 0.5)
    radius = (Ball(x, 0.1, "l2").random_point(generator) - x).flatten(1).norm(dim=1) / 0.1
    # The share within half the radius is 1/8 in three dimensions; four standard errors of 4,000 points.
    assert abs(float((radius < 0.5).float().mean()) - 1 / 8) < 4 * (1 / 8 * 7 / 8 / 4000) ** 0.5
    assert float(radius.max()) <= 1 + 1e-5


def test_step_sizes_decay_geometrically() -> None:
    assert step_sizes(1.0, 0.01, 3) == pytest.approx([1.0, 0.1, 0.01])
    assert step_sizes(0.5, None, 2) == [0.5, 0.5]
    assert step_sizes(0.0, 0.1, 2) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, r"steps is 2\.5"),
        ({"restarts": 0}, "restarts is 0"),
        ({"eot": 0}, "eot is 0"),
        ({"step_size": -1.0}, "step_size is"),
        ({"final_step_size": 0.0}, "final_step_size is"),
        ({"momentum": -1.0}, "momentum is"),
        ({"norm": "l3"}, r"norm is 'l3'.*linf"),
        ({"loss": "cee"}, "loss is 'cee'"),
        ({"temperature": 0.0}, "temperature is"),
        ({"eps": 1.5}, r"eps is 1\.5"),
    ],
)
def test_options_out_of_range_are_named(
    option: dict[str, object], message: str, generator: torch.Generator
) -> None:
    x, y = interior_images((2, 3, 2, 2), generator), torch.tensor([0, 1])
    options = {"eps": 0.1, **option}
    with pytest.raises(InputError, match=message):
        attacks.pgd(Linear((3, 2, 2), 3, generator), x, y, **options)  # type: ignore[arg-type]
