"""Penalties on the input gradient, on losses whose derivatives are known."""

from __future__ import annotations

import pytest
import torch
from tests.training.nets import ensemble, network, source, toy_data
from torch import Tensor, nn

import squint
from squint._random import noise
from squint.ensemble import Ensemble
from squint.training import ObjectiveConfig
from squint.training.objective import EnsembleObjective
from squint.training.smoothness import BatchStatistics, curvature, finite_difference, squared_gradient

HESSIAN = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, -1.0], [0.0, -1.0, 4.0]], dtype=torch.float64)
SLOPE = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def quadratic(x: Tensor) -> Tensor:
    """b x + x A x / 2 per row: gradient b + A x, Hessian A."""
    return x @ SLOPE + 0.5 * ((x @ HESSIAN) * x).sum(1)


def points() -> Tensor:
    return torch.randn(5, 3, generator=source(), dtype=torch.float64)


def with_gradient(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.requires_grad_()
    base = quadratic(x)
    (gradient,) = torch.autograd.grad(base.sum(), x, create_graph=True)
    return x, base, gradient


@pytest.mark.parametrize("h", [0.01, 0.5])
def test_finite_difference_of_a_quadratic_is_known(h: float) -> None:
    x, base, gradient = with_gradient(points())
    g = SLOPE + points() @ HESSIAN
    d = g / g.norm(dim=1, keepdim=True)
    # (l(x + h d) - l(x))/h = |g| + h d A d / 2, exactly.
    wanted = (g.norm(dim=1) + h * ((d @ HESSIAN) * d).sum(1) / 2).square().mean()
    torch.testing.assert_close(finite_difference(quadratic, x, base, gradient.detach(), h), wanted)


@pytest.mark.parametrize("h", [0.01, 0.5])
def test_curvature_of_a_quadratic_is_its_hessian(h: float) -> None:
    x, _, gradient = with_gradient(points())
    g = SLOPE + points() @ HESSIAN
    d = g / g.norm(dim=1, keepdim=True)
    wanted = (h * d @ HESSIAN).square().sum(1).mean()
    torch.testing.assert_close(curvature(quadratic, x, gradient, h), wanted)


def test_squared_gradient_is_the_mean_of_squared_norms() -> None:
    gradient = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    assert squared_gradient(gradient).item() == pytest.approx((25 + 1) / 2)


def test_a_flat_loss_has_no_penalty_and_no_nan() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    flat = torch.zeros(2, 3, dtype=torch.float64)

    def constant(z: Tensor) -> Tensor:
        return (0 * z).sum(1)

    assert finite_difference(constant, x, torch.zeros(2), flat, 0.1).item() == 0
    assert curvature(constant, x, flat, 0.1).item() == 0


def trained(*, norm: nn.Module | None = None) -> nn.Sequential:
    net = network(3)
    if norm is not None:
        net[1] = norm
    return net.train()


def test_replay_gives_the_training_pass_again_and_updates_nothing() -> None:
    net = nn.Sequential(trained(), nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    x, _ = toy_data()
    statistics = BatchStatistics(net)
    with statistics.record():
        first, second = net(x), net(x.flip(3))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with statistics.replay():
        again, next_one = net(x), net(x.flip(3))
    # Another formula for the same numbers: rounding of float32 sums.
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(next_one, second, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-3)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in net.modules())


def test_replay_holds_the_statistics_while_the_images_move() -> None:
    net = trained()
    x, _ = toy_data()
    statistics = BatchStatistics(net)
    with statistics.record():
        net(x)
    other = x.clone()
    other[1:] = 0.5
    with statistics.replay():
        whole = net(x)
    with statistics.replay():
        changed = net(other)
    torch.testing.assert_close(changed[:1], whole[:1])


def test_normalization_without_running_statistics_is_replayed_too() -> None:
    net = trained(norm=nn.BatchNorm2d(4, track_running_stats=False)).eval()
    x, _ = toy_data()
    statistics = BatchStatistics(net)
    with statistics.record():
        first = net(x)
    with statistics.replay():
        torch.testing.assert_close(net(x)[:3], first[:3], rtol=1e-5, atol=1e-5)
    with statistics.replay():
        torch.testing.assert_close(net(x[:3]), first[:3], rtol=1e-5, atol=1e-5)


def test_networks_in_evaluation_mode_have_nothing_to_replay() -> None:
    net = trained().eval()
    statistics = BatchStatistics(net)
    with statistics.record():
        net(toy_data()[0])
    assert statistics.seen == {}


def smooth(kind: str, **settings: float) -> EnsembleObjective:
    config = ObjectiveConfig(
        smoothness=1.0,
        smoothness_kind=kind,  # type: ignore[arg-type]
        smoothness_warmup=0.0,
        **settings,
    )
    return EnsembleObjective(config, draws=2, total_steps=1)


def term_of(objective: EnsembleObjective, ens: Ensemble, seed: int = 0) -> Tensor:
    x, y = toy_data(12)
    with noise(source(seed)):
        return objective(ens, x.to(next(ens.parameters()).dtype), y, 0)["smoothness"]


def test_a_perturbation_of_nothing_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Noise, statistics and dropout are those of the clean pass: without a step there is no difference.
    monkeypatch.setattr("squint.training.smoothness._direction", torch.zeros_like)
    ens = ensemble(dropout=0.5).train()
    squint.calibrate(ens, toy_data()[0])
    for kind in ("finite_difference", "curvature"):
        assert term_of(smooth(kind, smoothness_step=0.01), ens).item() == 0


@pytest.mark.parametrize("kind", ["finite_difference", "curvature", "double_backward"])
def test_no_chunk_divides_a_batch_that_was_normalized_whole(kind: str) -> None:
    x, y = toy_data(12)
    ens = ensemble().train()
    squint.calibrate(ens, x)
    values = []
    for chunk in (1000, 12, 5):
        ens.chunk = chunk
        with noise(source(1)):
            values.append(smooth(kind, smoothness_step=1.0)(ens, x, y, 0)["smoothness"].item())
    assert values[0] > 0
    assert values[1:] == pytest.approx([values[0]] * 2)


def test_the_objective_leaves_the_generator_where_one_pass_would() -> None:
    ens = ensemble().train()
    squint.calibrate(ens, toy_data()[0])
    x, y = toy_data(12)
    states = []
    for config in (ObjectiveConfig(), smooth("finite_difference").config):
        generator = source(1)
        with noise(generator):
            EnsembleObjective(config, 2, 1)(ens, x, y, 0)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_the_clean_pass_updates_running_statistics_once() -> None:
    ens = ensemble().train()
    squint.calibrate(ens, toy_data()[0])
    term_of(smooth("curvature"), ens)
    norms = [m for m in ens.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1]  # type: ignore[arg-type]
    assert all(norm.training for norm in norms)


def test_the_three_kinds_agree_for_small_steps() -> None:
    # Without noise and quantization the loss is smooth but for ReLU: |g|^2, and curvature 0.
    ens = Ensemble([network(1).double(), network(2).double()]).train()
    exact = term_of(smooth("double_backward"), ens)
    near = term_of(smooth("finite_difference", smoothness_step=1e-6), ens)
    torch.testing.assert_close(near, exact, rtol=1e-4, atol=0)
    assert term_of(smooth("curvature", smoothness_step=1e-6), ens).item() < 1e-6 * exact.item()
    assert exact.item() > 1e-3


@pytest.mark.parametrize("kind", ["double_backward", "finite_difference"])
def test_the_gradient_in_the_weights_is_the_whole_one(kind: str) -> None:
    """Statistics of the batch move with the weights: central differences see it, and so must autograd."""
    ens = Ensemble([network(1).double()]).train()
    weight = ens.members[0][0].weight  # type: ignore[index]
    assert isinstance(weight, Tensor)
    objective = smooth(kind, smoothness_step=1e-5)
    (gradient,) = torch.autograd.grad(term_of(objective, ens), weight)
    h = 1e-6
    for place in ((0, 0, 1, 1), (2, 0, 0, 2), (3, 0, 2, 1)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * h
            values.append(term_of(objective, ens).item())
            with torch.no_grad():
                weight[place] -= sign * h
        wanted = (values[0] - values[1]) / (2 * h)
        # The finite difference is |g| to first order in its step of 1e-5, divided by which rounding grows.
        assert gradient[place].item() == pytest.approx(wanted, rel=2e-3, abs=2e-4)
        assert abs(wanted) > 1e-3
