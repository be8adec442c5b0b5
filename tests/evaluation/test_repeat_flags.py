"""Models that are not the same twice, and honest ones that are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint.attacks.gradients import AnyModel
from squint.evaluation.records import Finding
from squint.evaluation.repeat_flags import company, hidden_noise, other_forward
from squint.evaluation.scoring import is_random
from tests.evaluation.graveyard import nets

FLAGS: tuple[Callable[..., Finding | None], ...] = (hidden_noise, company, other_forward)


def looked(model: AnyModel, flag: Callable[..., Finding | None], n: int = 12) -> Finding | None:
    x, y = nets.images(n)
    return flag(model, x, seed=0) if flag is other_forward else flag(model, x, y, seed=0)


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("honest", [nets.undefended, nets.stochastic])
def test_honest_models_pass(honest: Callable[[], nn.Module], flag: Callable[..., Finding | None]) -> None:
    model = honest()
    state = torch.get_rng_state()
    assert looked(model, flag) is None
    assert looked(squint.Ensemble([model], 2).eval(), flag) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_of_a_hook_is_seen() -> None:
    model = copy.deepcopy(nets.undefended())
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 0.05 * torch.randn_like(inputs[0]),))
    assert not is_random(model)
    finding = looked(model, hidden_noise)
    assert finding is not None
    assert finding.kind == "hidden_noise"
    assert "its outputs differ between two calls" in finding.message


class _NoisyBackward(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient + gradient.abs().mean() * torch.randn_like(gradient)


class NoisyGradient(nn.Module):
    draws_noise = False

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, nets.undefended()(_NoisyBackward.apply(x)))  # type: ignore[no-untyped-call]


def test_noise_of_the_backward_pass_is_seen() -> None:
    finding = looked(NoisyGradient().eval(), hidden_noise)
    assert finding is not None
    assert "its gradients differ" in finding.message


class AloneIsAnother(nn.Module):
    """Another network where an image is alone."""

    draws_noise = False

    def forward(self, x: Tensor) -> Tensor:
        logits = cast(Tensor, nets.undefended()(x))
        return logits if len(x) > 1 else logits.flip(1)


class NeighbourBefore(nn.Module):
    """Adds the logits of the image before, so that the second half never reaches the first."""

    draws_noise = False

    def forward(self, x: Tensor) -> Tensor:
        logits = cast(Tensor, nets.undefended()(x))
        return logits + torch.cat([logits[:1], logits[:-1]])


@pytest.mark.parametrize("kind", [AloneIsAnother, NeighbourBefore])
def test_company_counts(kind: type[nn.Module]) -> None:
    finding = looked(kind().eval(), company)
    assert finding is not None
    assert finding.kind == "batch_dependence"


class Called(nn.Module):
    """Two members; the call pools them by their mean probability, or by the median of their logits."""

    def __init__(self, noisy: bool, honest: bool) -> None:
        super().__init__()
        first = nets.stochastic() if noisy else nets.undefended()
        self.ens, self.draws, self.honest = squint.Ensemble([first, nets.undefended()], 4).eval(), 4, honest

    def member_logits(self, x: Tensor, draws: int, *, generator: torch.Generator | None = None) -> Tensor:
        return self.ens.member_logits(x, draws, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.ens.member_logits(x, 4)
        if self.honest:
            return logits.softmax(-1).mean((0, 1)).log()
        return 0.1 * logits.flatten(0, 1).median(0).values


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("honest", [False, True])
def test_what_is_called_is_what_is_scored(noisy: bool, honest: bool) -> None:
    finding = looked(Called(noisy, honest).eval(), other_forward, 40)
    assert (finding is None) == honest
    assert finding is None or finding.kind == "other_forward"
