"""Calibration: signedness, least-squares ranges, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from squint._checks import InputError
from squint.quantize import StochasticQuantizer, calibrate, needs_calibration, quantize, quantizers
from squint.quantize.observer import RangeObserver, best_step
from tests.quantize.nets import Residual


def images(batch: int = 16) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def named(net: nn.Module) -> dict[str, StochasticQuantizer]:
    return {q.name: q for q in quantizers(net)}


def test_an_uncalibrated_forward_raises_and_names_calibrate() -> None:
    net = quantize(Residual())
    assert needs_calibration(net)
    with pytest.raises(InputError, match=r"stem.activation_quantizer has no range yet.*calibrate"):
        net(images())
    calibrate(net, images())
    assert not needs_calibration(net)
    net(images())


def test_grids_are_signed_where_values_were_negative() -> None:
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(torch.tanh(self.first(x)) - 0.2)
            return out

    net = quantize(Signs(), activation_bits=3, first_last_bits=3, width=0.0)
    calibrate(net, torch.rand(64, 4, generator=torch.Generator().manual_seed(1)))
    first, second = (named(net)[f"{name}.activation_quantizer"] for name in ("first", "second"))
    assert (float(first.offset), first.levels) == (0.0, 8)
    assert (float(second.offset), second.levels) == (-4.0, 8)
    torch.testing.assert_close(second.low, -4 * second.step.detach())
    torch.testing.assert_close(second.high, 3 * second.step.detach())


def test_ranges_cover_most_of_what_passes() -> None:
    net = quantize(Residual(), activation_bits=8, first_last_bits=8, input_bits=None)
    calibrate(net, images())
    top = float(named(net)["stem.activation_quantizer"].high)
    # The layer that reads the image covers all of it, with 1 % to spare.
    assert 1.0 < top <= 1.01 + 1e-6


def test_nothing_but_the_ranges_changes() -> None:
    net = quantize(Residual().train())
    net.network.eval()
    state = copy.deepcopy(net.state_dict())
    modes = [m.training for m in net.modules()]
    before = torch.get_rng_state()
    calibrate(net, images())
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in net.modules()] == modes
    ranges = ("step", "offset", "calibrated", "level_count")
    for name, value in net.state_dict().items():
        if not (name.endswith(ranges) and "activation_quantizer" in name):
            assert torch.equal(value, state[name]), name
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_batch_normalization_without_statistics_uses_those_of_the_images() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(x))
            return out

    x = 0.1 * torch.rand(256, 4, generator=torch.Generator().manual_seed(1))
    fresh, trained = Scaled(), Scaled()
    assert trained.norm.num_batches_tracked is not None
    trained.norm.num_batches_tracked.fill_(1)
    tops = []
    for net in (fresh, trained):
        quantized = quantize(net, input_bits=None)
        calibrate(quantized, x)
        tops.append(float(named(quantized)["head.activation_quantizer"].high))
    # Standardised uniform values reach sqrt(3); raw ones reach 0.1.
    assert 1.4 < tops[0] < 1.9
    assert tops[1] < 0.11


def test_calibrating_again_follows_the_images() -> None:
    net = quantize(nn.Linear(4, 2), input_bits=None)
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(1))
    calibrate(net, x)
    wide = float(named(net)[".activation_quantizer"].high)
    step = named(net)[".activation_quantizer"].step
    calibrate(net, 0.1 * x)
    assert float(named(net)[".activation_quantizer"].high) == pytest.approx(0.1 * wide, rel=1e-4)
    assert named(net)[".activation_quantizer"].step is step, "an optimizer holds the parameter"


def test_missing_ranges_leave_the_others_alone() -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(1))
    learned, fresh = (quantize(nn.Linear(4, 2), input_bits=None) for _ in range(2))
    calibrate(learned, 0.5 * x)
    before = float(named(learned)[".activation_quantizer"].high)
    both = nn.Sequential(learned, nn.Flatten(), nn.Linear(2, 4), nn.Sigmoid(), fresh)
    calibrate(both, x, missing=True)
    assert float(named(learned)[".activation_quantizer"].high) == before
    assert not needs_calibration(both)
    calibrate(both, x)
    assert float(named(learned)[".activation_quantizer"].high) > 1.5 * before


def test_a_layer_that_never_runs_is_named_and_nothing_is_set() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    net = quantize(Half())
    with pytest.raises(InputError, match=r"unused.activation_quantizer saw no value"):
        calibrate(net, torch.rand(8, 4))
    assert needs_calibration(net)
    assert all(q.observer is None for q in quantizers(net))


def test_values_that_are_not_finite_leave_every_range_alone() -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x) / 0)
            return out

    net = quantize(Overflowing())
    with pytest.raises(InputError, match=r"step is inf in b.activation_quantizer"):
        calibrate(net, torch.rand(8, 4))
    held = named(net)
    assert not bool(held["a.activation_quantizer"].calibrated)
    assert not bool(held["b.activation_quantizer"].calibrated)


def test_an_error_inside_the_network_leaves_no_observer() -> None:
    net = quantize(Residual().train())
    with pytest.raises(RuntimeError):
        calibrate(net, torch.rand(2, 4, 8, 8))
    assert all(q.observer is None for q in quantizers(net))
    assert all(m.training for m in net.modules())


def test_images_outside_the_unit_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        calibrate(quantize(Residual()), images() * 255)


@pytest.mark.parametrize(("lowest", "levels"), [(0.0, 2), (0.0, 16), (-8.0, 16), (-7.0, 15), (-0.5, 2)])
def test_best_step_is_near_the_best_of_a_dense_search(lowest: float, levels: int) -> None:
    values = torch.randn(3, 2_000, generator=torch.Generator().manual_seed(2))
    values = values.abs() if lowest == 0 else values

    def error(step: Tensor) -> Tensor:
        grid = step[:, None, None] * (lowest + torch.arange(levels))
        return (values[:, :, None] - grid).square().amin(2).sum(1)

    found = error(best_step(values, lowest, levels))
    full = values.abs().amax(1) / max(abs(lowest), abs(lowest + levels - 1))
    dense = torch.stack([error(full * f) for f in torch.linspace(0.02, 1, 300).tolist()]).amin(0)
    assert (found <= 1.03 * dense).all()


def test_best_step_of_two_signed_levels_is_twice_the_mean_magnitude() -> None:
    values = torch.randn(1, 5_000, generator=torch.Generator().manual_seed(2))
    # XNOR-Net (Rastegari et al. 2016): the best scale of sign(w) is the mean of |w|; to the search's 2.4 %.
    top = float(values.abs().max()) * 2
    assert float(best_step(values, -0.5, 2)) / 2 == pytest.approx(
        float(values.abs().mean()), abs=0.0125 * top
    )


def test_rows_of_zeros_get_a_step_of_one() -> None:
    assert best_step(torch.zeros(2, 5), 0.0, 4).tolist() == [1.0, 1.0]


def test_the_observer_keeps_a_sample_of_bounded_size() -> None:
    observer = RangeObserver()
    observer.observe(torch.linspace(0, 1, 1_000_003))
    assert not observer.signed
    kept = observer.values()
    assert 16_000 < kept.numel() < 33_000
    assert float(kept.mean()) == pytest.approx(0.5, abs=1e-3)
    observer.observe(torch.tensor([-1.0]))
    assert observer.signed
