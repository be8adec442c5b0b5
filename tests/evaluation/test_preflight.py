from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import squint
from squint import InputError, attacks
from squint.evaluation.gradient_flags import fidelity, unfaithful, zero_gradients
from squint.evaluation.model_flags import batch_dependence, dead_widths, probability_outputs, training_mode
from squint.evaluation.preflight import preflight
from squint.evaluation.preflight_runs import Probes
from squint.evaluation.white_box import WhiteBox
from tests.evaluation.graveyard import nets

CHEAP = Probes(
    images=30,
    eps_factors=(1.0, 2.0),
    steps=(5, 10),
    eot=(1, 2),
    restarts=(1, 2),
    square_steps=20,
    spsa_steps=2,
    spsa_directions=4,
    transfer_steps=5,
    fidelity_draws=16,
    resubmissions=8,
    batch_size=30,
)
WHITE = WhiteBox(steps=2, eot=1)


def kinds(model: nn.Module | Callable[[Tensor], Tensor], **settings: object) -> list[str]:
    arguments = {"eps": nets.EPS, "seed": 0, "attack": WHITE, "probes": CHEAP, **settings}
    found = preflight(model, nets.images(40), **arguments)  # type: ignore[arg-type]
    return [finding.kind for finding in found]


@pytest.mark.parametrize("honest", [nets.undefended, nets.stochastic])
def test_an_honest_model_raises_no_flag(honest: Callable[[], nn.Module]) -> None:
    model = honest()
    before = torch.get_rng_state()
    assert kinds(model, sources=[nets.undefended()]) == []
    assert torch.equal(before, torch.get_rng_state())
    assert not any(part.training for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_masked_model_is_found_out_and_the_same_twice() -> None:
    quick = {"probes": CHEAP, "attack": lambda m, x, y, eps, g: attacks.pgd(m, x, y, eps=eps, generator=g)}
    found = kinds(nets.zero_gradient(), sources=[nets.undefended()], **quick)
    assert {"zero_gradients", "black_box_beats_white_box", "accurate_at_large_eps"} <= set(found)
    assert found == kinds(nets.zero_gradient(), sources=[nets.undefended()], **quick)


def test_training_mode_is_found_and_given_back() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert training_mode(model) is None
    model[1].train()
    finding = training_mode(model)
    assert finding is not None
    assert finding.measured == {"parts": 1, "first": "1"}
    assert "training_mode" in kinds(model)
    assert [part.training for part in model] == [False, True]


def test_a_plain_function_is_checked_too() -> None:
    net = nets.undefended()
    assert training_mode(lambda x: net(x)) is None
    assert dead_widths(lambda x: net(x)) == []


def test_probabilities_are_no_logits() -> None:
    x, net = nets.images(8)[0], nets.undefended()
    assert probability_outputs(net, x, seed=0) is None
    assert probability_outputs(nets.stochastic(), x, seed=0) is None
    softmax = nn.Sequential(net, nn.Softmax(-1)).eval()
    finding = probability_outputs(softmax, x, seed=0)
    assert finding is not None
    assert finding.measured["rows"] == 8
    members = probability_outputs(squint.Ensemble([softmax, softmax]).eval(), x, seed=0)
    assert members is not None
    assert members.measured["rows"] == 16


class BatchCentred(nn.Module):
    """Subtracts a little of the batch's mean logits from each image's."""

    def forward(self, x: Tensor) -> Tensor:
        logits = cast(Tensor, nets.undefended()(x))
        return logits - 0.01 * logits.mean(0)


def test_outputs_that_depend_on_the_batch() -> None:
    x, y = nets.images(8)
    finding = batch_dependence(BatchCentred(), x, y, seed=0)
    assert finding is not None
    assert finding.measured["mean_repeat"] == 0
    assert batch_dependence(nets.undefended(), x, y, seed=0) is None
    assert batch_dependence(nets.stochastic(), x, y, seed=0) is None


def test_noise_that_cannot_be_held_still_is_no_batch_dependence() -> None:
    x, y = nets.images(40)
    own = torch.Generator().manual_seed(0)

    def noisy(images: Tensor) -> Tensor:
        return cast(Tensor, nets.undefended()(images + 0.1 * torch.randn(images.shape, generator=own)))

    assert batch_dependence(noisy, x, y, seed=0) is None
    with pytest.raises(InputError, match="2 or more"):
        batch_dependence(noisy, x[:1], y[:1], seed=0)


def test_a_width_at_its_floor_has_died() -> None:
    net = squint.quantize(nets.small_cnn(0), 4, 4, 2, learn_width=True)
    assert dead_widths(net) == []
    quantizer = net.get_submodule("network.conv2.0.activation_quantizer")
    assert isinstance(quantizer, squint.StochasticQuantizer)
    with torch.no_grad():
        quantizer.width.fill_(0.1)
    (finding,) = dead_widths(net)
    assert finding.kind == "dead_width"
    assert "conv2.0.activation_quantizer" in finding.message


def test_a_share_of_zero_gradients_above_one_percent() -> None:
    x, y = nets.images(100)
    gate = torch.ones(100, 1)

    def gated(images: Tensor) -> Tensor:
        logits = cast(Tensor, nets.undefended()(images))
        return torch.where(gate > 0, logits, logits.detach())

    gate[:1] = 0
    assert zero_gradients(gated, x, y, seed=0) == []
    gate[:2] = 0
    (finding,) = zero_gradients(gated, x, y, seed=0)
    assert finding.measured["share"] == pytest.approx(0.02)


class Bypassed(nn.Module):
    """A quantizer whose range no value meets, beside a path that keeps the gradient alive."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = squint.StochasticQuantizer(2, low=-2.0, high=-1.0)
        self.net = nets.undefended()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(x + 1 + self.quantizer(x)))


def test_a_quantizer_that_passes_no_gradient_is_named() -> None:
    x, y = nets.images(20)
    (finding,) = zero_gradients(Bypassed().eval(), x, y, seed=0)
    assert finding.kind == "zero_surrogate"
    assert finding.measured["quantizer"] == "quantizer"
    assert zero_gradients(nets.stochastic(), x, y, seed=0) == []


@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_the_path_integral_of_a_true_gradient_is_the_rise(eps: float) -> None:
    x, y = nets.images(50)
    measured = fidelity(nets.undefended(), x, y, eps, seed=0, draws=8)
    # The midpoint rule with 8 nodes, on a network with kinks.
    assert measured.ratio == pytest.approx(1.0, abs=0.02)
    assert unfaithful(measured) is None
    # What a first-order prediction at x would have said of this honest network.
    assert (measured.at_start / measured.actual < 0.7) == (eps >= 0.1)


class Magnified(torch.autograd.Function):
    """Identity with a gradient that is `factor` times too large."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None  # type: ignore[attr-defined]


@pytest.mark.parametrize(("factor", "found"), [(0.6, True), (0.8, False), (1.3, False), (1.5, True)])
def test_a_gradient_of_the_wrong_size_is_unfaithful(factor: float, found: bool) -> None:
    x, y = nets.images(30)

    def model(images: Tensor) -> Tensor:
        return cast(Tensor, nets.undefended()(Magnified.apply(images, factor)))  # type: ignore[no-untyped-call]

    measured = fidelity(model, x, y, 0.1, seed=0, draws=8)
    assert measured.ratio == pytest.approx(factor, abs=0.02)
    assert (unfaithful(measured) is not None) == found


def test_a_loss_that_does_not_rise_is_unfaithful_and_a_still_one_is_not() -> None:
    x, y = nets.images(10)

    def backwards(images: Tensor) -> Tensor:
        return cast(Tensor, nets.undefended()(Magnified.apply(images, -1.0)))  # type: ignore[no-untyped-call]

    measured = fidelity(backwards, x, y, 0.05, seed=0, draws=8)
    assert measured.ratio == math.inf
    finding = unfaithful(measured)
    assert finding is not None
    assert finding.measured["ratio"] is None
    still = fidelity(lambda images: torch.zeros(len(images), 10), x, y, 0.05, seed=0, draws=8)
    assert unfaithful(still) is None


def test_one_image_is_refused() -> None:
    with pytest.raises(InputError, match="2 or more"):
        preflight(nets.undefended(), nets.images(1), seed=0)


class _OneDeadMember(torch.nn.Module):
    """Two linear members; the second sees its input without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.two = torch.nn.Linear(16, 3), torch.nn.Linear(16, 3)

    def member_logits(
        self,
        x: torch.Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> torch.Tensor:
        del generator, stratified
        flat = x.flatten(1)
        return torch.stack([self.one(flat), self.two(flat.detach())]).expand(draws, -1, -1, -1)


def test_a_member_without_gradients_is_seen_behind_one_that_has_them() -> None:
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    findings = zero_gradients(_OneDeadMember(), x, torch.arange(20) % 3, seed=0, draws=2)
    assert [finding.kind for finding in findings] == ["zero_gradients"]
    assert "in member 1" in findings[0].message
    assert findings[0].measured["share"] == 1.0


def test_points_that_the_attack_found_already_stand_for_it() -> None:
    """The clean images as what a white box found: every black box beats that."""

    def never(*_: object) -> Tensor:
        raise AssertionError("the attack ran though its points were given")

    x, _ = nets.images(40)
    model = nets.undefended()
    sources = [model]
    assert "black_box_beats_white_box" in kinds(model, attack=never, found=x, sources=sources)
    broken = attacks.pgd(
        model, *nets.images(40), eps=nets.EPS, steps=10, generator=torch.Generator().manual_seed(0)
    )
    assert kinds(model, attack=never, found=broken, sources=sources) == []
