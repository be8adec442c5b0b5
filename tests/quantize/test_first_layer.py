"""The layer that reads the image never clips it: a clipped coarse image has no gradient, which is masking."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from squint.models import small_cnn
from squint.quantize import StochasticQuantizer, calibrate, cover_readers, quantize, quantizers
from squint.quantize.observer import RangeObserver, covering_step


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("levels_lowest", [(16, -8.0), (16, 0.0), (256, -128.0)])
def test_the_covering_step_holds_every_value(bits: int, levels_lowest: tuple[int, float]) -> None:
    levels, lowest = levels_lowest
    values = torch.randn(3, 50, generator=torch.Generator().manual_seed(bits))
    values = values if lowest < 0 else values.abs()
    step = covering_step(values, lowest, levels)[:, None]
    assert bool((values <= step * (lowest + levels - 1)).all())
    assert bool((values >= step * lowest).all())
    tight = step / 1.02
    assert bool(((values > tight * (lowest + levels - 1)) | (values < tight * lowest)).any(1).all())


def test_rows_of_zeros_have_step_one() -> None:
    assert covering_step(torch.zeros(2, 4), 0.0, 16).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("input_bits", [1, 2, None])
def test_every_pixel_has_a_gradient_at_the_first_layer(input_bits: int | None) -> None:
    net = quantize(small_cnn(in_channels=1, width=4), 2, 4, input_bits, activation_width=0.0)
    generator = torch.Generator().manual_seed(0)
    calibrate(net, torch.rand(32, 1, 8, 8, generator=generator))
    first = net.network.get_submodule("conv1.0")
    quantizer = first.activation_quantizer
    assert isinstance(quantizer, StochasticQuantizer)
    assert not any(isinstance(value, nn.Parameter) for value in (quantizer.step, quantizer.width))
    pixels = torch.tensor([0.0, 1.0, 0.25, 0.5]).view(1, 1, 2, 2)
    x = ((pixels - 0.5) / 0.25).requires_grad_()
    (slope,) = torch.autograd.grad(quantizer(x).sum(), x)
    assert slope.flatten().tolist() == [1.0] * 4


def test_other_layers_keep_a_learned_range() -> None:
    net = quantize(small_cnn(in_channels=1, width=4), 2, 4, 2)
    second = net.network.get_submodule("conv2.0").activation_quantizer
    assert isinstance(second, StochasticQuantizer)
    assert isinstance(second.step, nn.Parameter)


def test_calibration_meets_every_column_of_images() -> None:
    # Widths are powers of two, and so would be the distance of evenly spaced samples of 512 images.
    for shape in ((512, 1, 32, 32), (512, 12, 8, 8), (512, 3, 4, 4), (100_000, 3)):
        observer = RangeObserver()
        observer.observe(torch.arange(shape[-1]).float().expand(shape))
        assert set(observer.values().tolist()) == set(range(shape[-1]))
        assert len(observer.values()) <= 2 * 16_384


def test_the_first_layer_covers_the_one_value_that_a_sample_misses() -> None:
    images = torch.zeros(512, 1, 32, 32)
    images[7, 0, 11, 5] = 1.0
    net = quantize(small_cnn(in_channels=1, width=4), 4, 4, None)
    calibrate(net, images)
    quantizer = net.network.get_submodule("conv1.0").activation_quantizer
    assert isinstance(quantizer, StochasticQuantizer)
    assert float(quantizer.high) > (1 - 0.5) / 0.25


class Unordered(nn.Module):
    """Names its head first, reads the image twice, and adds a learned token to what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.left, self.right = nn.Linear(4, 3), nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.middle, self.token = nn.Conv2d(4, 4, 3), nn.Parameter(torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.5) / 0.25
        x = self.middle(self.left(x).relu() + self.right(x) + self.token)
        out: Tensor = self.head(x.relu().mean((2, 3)))
        return out


def test_what_reads_the_image_is_covered_in_whatever_order_it_is_named() -> None:
    net = quantize(Unordered(), 4, 4, 2)
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    calibrate(net, images)
    assert torch.equal(torch.get_rng_state(), state)
    held = {q.name: q for q in quantizers(net) if q.ranged_by_data}
    left, right, middle = (held[f"{name}.activation_quantizer"] for name in ("left", "right", "middle"))
    assert [quantizer.covers for quantizer in (left, right, middle)] == [True, True, False]
    assert [quantizer.step.requires_grad for quantizer in (left, right, middle)] == [False, False, True]
    assert float(left.high) > 1.9
    assert float(right.high) > 1.9
    fixed = {id(left.step), id(right.step)}
    assert all(parameter.requires_grad for parameter in net.parameters() if id(parameter) not in fixed)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_networks_without_quantized_layers_are_not_run() -> None:
    cover_readers(nn.Linear(3, 2), torch.zeros(1, 1, 8, 8))


class Embedded(nn.Module):
    """Embeds the image by weights of its own, in no layer, and calls what follows by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Parameter(0.1 * torch.ones(64, 8)), nn.LayerNorm(64)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.norm(x.flatten(1)) @ self.embedding
        stream = stream + self.first(input=stream)
        out: Tensor = self.second(input=stream.relu())
        return out


def test_what_follows_other_weights_does_not_read_the_image() -> None:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    behind, direct = quantize(Embedded(), 4, 4, 2), quantize(Named(), 4, 4, 2)
    for net, found in ((behind, {"first": True, "second": False}), (direct, {"head": True, "reads": True})):
        calibrate(net, images)
        held = {q.name.split(".")[0]: q for q in quantizers(net) if q.ranged_by_data}
        assert {name: quantizer.covers for name, quantizer in held.items()} == found
        assert all(parameter.requires_grad for parameter in net.parameters() if parameter.ndim > 1)


class Named(nn.Module):
    """Normalizes the image by learned scales, and gives it to a layer that it names last, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm, self.reads = nn.Linear(4, 3), nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.reads(input=self.norm(x)).relu().mean((2, 3)))
        return out


class Scaled(nn.Module):
    """Names its head first, and scales the image by channel in the shape that broadcasts."""

    def __init__(self, mixing: bool) -> None:
        super().__init__()
        self.head, self.conv = nn.Linear(4, 3), nn.Conv2d(2, 4, 3)
        self.scale, self.shift = (
            nn.Parameter(torch.full((1, 2, 1, 1), 2.0)),
            nn.Parameter(torch.zeros(2, 1, 1)),
        )
        # Left in full precision: quantized layers are of exactly torch's types.
        self.mix = _Mix(2, 2, 1) if mixing else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(self.mix(x * self.scale + self.shift)).relu().mean((2, 3)))
        return out


class _Mix(nn.Conv2d):
    pass


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.filterwarnings("ignore:left in full precision")
def test_scales_of_channels_in_any_shape_are_no_weights(mixing: bool) -> None:
    net = quantize(Scaled(mixing), 4, 4, 2, first_last_bits=2)
    calibrate(net, torch.rand(32, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    quantizer = net.network.get_submodule("conv").activation_quantizer
    assert isinstance(quantizer, StochasticQuantizer)
    assert quantizer.covers != mixing
