"""Outcomes in a folder are one model's: what looks alike and does otherwise is refused, or cannot be kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squint._checks import InputError
from squint.attacks.gradients import AnyModel
from squint.evaluation import AttackSetting, evaluate
from squint.evaluation.batch_outcomes import digest, model_digest
from squint.evaluation.budgets import tiny
from squint.evaluation.information_plane import information_plane
from squint.evaluation.ladder_run import run_ladder
from squint.evaluation.threats import PlaneBudget
from tests.evaluation.ladder_models import NoisyPair, small_ensemble

CPU = torch.device("cpu")
EPS = 0.05


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, 1, 4, 4, generator=generator), torch.randint(2, (n,), generator=generator)


def by(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: factor * x.flatten(1)[:, :2]


class Drawn:
    """Members whose noise is the generator's, or torch's own."""

    def __init__(self, scale: float, controlled: bool = True) -> None:
        self.scale, self.controlled = scale, controlled

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del stratified
        noise = torch.rand(draws, 1, len(x), 2, generator=generator if self.controlled else None)
        return x.flatten(1)[:, :2] + self.scale * noise


class Scaled(nn.Module):
    """Someone's module with a setting that neither its state nor its printed form tells."""

    def __init__(self, factor: float, own_noise: float = 0.0) -> None:
        super().__init__()
        self.factor, self.own_noise = factor, own_noise

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.flatten(1)[:, :2] + self.own_noise * torch.rand(len(x), 2)


def hooked(factor: float) -> nn.Module:
    net = nn.Sequential(nn.Flatten())
    net.register_forward_hook(lambda *passed: factor * passed[-1])
    return net


def run_evaluate(model: AnyModel, folder: Path) -> None:
    evaluate(model, data(), EPS, [AttackSetting("short", steps=1)], resubmissions=2, folder=folder)


def run_the_ladder(model: AnyModel, folder: Path) -> None:
    run_ladder(model, data(), EPS, tiny(1), resubmissions=2, known=False, folder=folder)


@pytest.mark.parametrize("run", [run_evaluate, run_the_ladder])
@pytest.mark.parametrize(
    ("model", "other"),
    [(by(1.0), by(-1.0)), (Drawn(0.1), Drawn(0.2)), (Scaled(1.0), Scaled(2.0)), (hooked(1.0), hooked(2.0))],
    ids=["functions", "members", "modules", "hooks"],
)
def test_a_model_that_looks_alike_does_not_share_outcomes(
    run: Callable[[AnyModel, Path], None], model: AnyModel, other: AnyModel, tmp_path: Path
) -> None:
    run(model, tmp_path)
    run(model, tmp_path)
    with pytest.raises(InputError, match="outcomes of another configuration, which differs in model; choose"):
        run(other, tmp_path)


def test_sources_that_look_alike_do_not_share_outcomes(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"resubmissions": 2, "known": False, "folder": tmp_path / "ladder"}
    run_ladder(by(1.0), data(), EPS, tiny(1), sources={"a": by(2.0)}, **arguments)
    with pytest.raises(InputError, match="which differs in sources"):
        run_ladder(by(1.0), data(), EPS, tiny(1), sources={"a": by(3.0)}, **arguments)
    ens, least = small_ensemble(2), PlaneBudget(steps=1, eot=1)
    more: dict[str, Any] = {"eps": EPS, "budget": least, "bootstrap": 2, "resubmissions": 2}

    def plane(factor: float) -> None:
        information_plane(
            ens,
            data(),
            ("noise-linf",),
            sources=[lambda x: factor * x.flatten(1)[:, :4]],
            folder=tmp_path / "plane",
            **more,
        )

    plane(1.0)
    with pytest.raises(InputError, match="which differs in sources"):
        plane(2.0)


@pytest.mark.parametrize("run", [run_evaluate, run_the_ladder])
@pytest.mark.parametrize(
    "model", [lambda x: x.flatten(1)[:, :2] + torch.rand(len(x), 2), Drawn(0.1, controlled=False)]
)
def test_noise_out_of_reach_cannot_be_kept(
    run: Callable[[AnyModel, Path], None], model: AnyModel, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="whose outputs differ between two calls under one seed") as caught:
        run(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_modules_with_noise_of_their_own_are_told_apart_by_their_state_alone() -> None:
    x, _ = data()
    before = torch.get_rng_state()
    model = Scaled(1.0, own_noise=0.5)
    assert model_digest(model, x, CPU) == digest(model)
    assert torch.equal(torch.get_rng_state(), before)
    noisy = NoisyPair().train()
    assert model_digest(noisy, x, CPU) == model_digest(NoisyPair().train(), x, CPU) != digest(noisy)
    assert noisy.training
    assert noisy.weight.requires_grad


def test_networks_of_known_layers_are_not_asked_for_outputs() -> None:
    """Their digest is then the same on every machine, whatever the last digits of its outputs."""
    ens = small_ensemble(2)
    assert model_digest(ens, torch.empty(0), CPU) == digest(ens) == digest(copy.deepcopy(ens))


def test_settings_that_torch_does_not_print_count() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        two = nn.MultiheadAttention(8, 2)
    four = nn.MultiheadAttention(8, 4)
    four.load_state_dict(two.state_dict())
    assert repr(two) == repr(four)
    assert digest(two) != digest(four)
    assert digest(nn.AvgPool2d(2, ceil_mode=True)) != digest(nn.AvgPool2d(2))
    assert digest(two.eval()) == digest(two.train())
