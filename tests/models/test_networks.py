from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from squint import models
from squint._checks import InputError, InputTypeError
from squint.models import MODELS, Normalize, build, spec_of


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_images_of_any_common_size_give_logits(name: str, channels: int, size: int) -> None:
    net = MODELS[name](7, channels, width=4).eval()
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(x)
    assert y.shape == (2, 7)
    assert bool(torch.isfinite(y).all())


def convolution(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + 2 * outputs


def residual(blocks: tuple[int, ...], width: int, classes: int = 10) -> int:
    """Parameters of a residual network, counted from its description (He et al. 2016)."""
    total, inputs = convolution(3, width), width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            total += convolution(inputs, outputs) + convolution(outputs, outputs)
            if block == 0 and stage > 0:
                total += convolution(inputs, outputs, 1)
            inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("make", "blocks"),
    [(models.resnet8, (1, 1, 1)), (models.resnet20, (3, 3, 3)), (models.resnet18, (2, 2, 2, 2))],
)
def test_residual_networks_have_the_parameters_of_their_description(
    make: Callable[..., nn.Module], blocks: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        assert parameters(make(width=16)) == residual(blocks, 16)
        assert parameters(make(width=8, num_classes=100)) == residual(blocks, 8, 100)


@pytest.mark.parametrize("patch", [2, 3, 4, 8])
def test_a_stem_of_patches_divides_the_side(patch: int) -> None:
    net = models.resnet8(width=4, patch=patch)
    sizes: list[int] = []
    stem = net.get_submodule("stem")
    stem.register_forward_hook(lambda _module, _inputs, out: sizes.append(out.shape[-1]))
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [-(-32 // patch)]
    kernel = 2 * patch
    assert parameters(net) == residual((1, 1, 1), 4) + 3 * 4 * (kernel**2 - 9)
    rebuilt = models.build(models.spec_of(net) or {})
    assert rebuilt.state_dict().keys() == net.state_dict().keys()
    assert rebuilt.get_submodule("stem.0").weight.shape == (4, 3, kernel, kernel)


def test_networks_without_patches_keep_their_spec() -> None:
    assert models.spec_of(models.resnet8(width=4, patch=1)) == models.spec_of(models.resnet8(width=4))
    assert "patch" not in (models.spec_of(models.resnet8(width=4)) or {})


def test_default_widths_are_those_of_the_literature() -> None:
    with torch.device("meta"):
        # ResNet-8 of width 16 has 78k parameters (DESIGN section 8); ResNet-18 for CIFAR has 11.2 million.
        assert parameters(models.resnet8()) == 78_042
        assert parameters(models.resnet18()) == 11_173_962


def test_normalization_is_inside() -> None:
    norm = Normalize(2, (0.25, 0.5), (0.5, 0.125))
    x = torch.rand(3, 2, 4, 4)
    wanted = torch.stack([(x[:, 0] - 0.25) / 0.5, (x[:, 1] - 0.5) / 0.125], 1)
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close(Normalize(1, None, None)(x[:, :1]), (x[:, :1] - 0.5) / 0.25)
    # Gray images are shown to every channel.
    torch.testing.assert_close(norm(x[:, :1]), norm(x[:, :1].expand(-1, 2, -1, -1)))
    assert set(norm.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize("name", MODELS)
def test_a_spec_builds_the_same_network_again(name: str) -> None:
    net = MODELS[name](5, 2, width=4, mean=torch.tensor([0.25, 0.75]), std=(0.5, 0.25)).eval()
    spec = spec_of(net)
    assert spec == {
        "name": name, "num_classes": 5, "in_channels": 2, "width": 4, "mean": [0.25, 0.75], "std": [0.5, 0.25]
    }  # fmt: skip
    again = build(spec).eval()
    again.load_state_dict(net.state_dict())
    x = torch.rand(2, 2, 8, 8)
    assert torch.equal(again(x), net(x))
    assert spec_of(again) == spec
    assert spec_of(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "model is 'None'"),
        ({"name": "resnet9"}, "did you mean"),
        ({"name": ["resnet8"]}, "model is"),
        ({"name": "resnet8", "num_classes": 1}, "num_classes is 1"),
        ({"name": "resnet8", "num_classes": "10"}, "num_classes is '10'"),
        ({"name": "resnet8", "num_classes": 10**18}, "num_classes is 1000000000000000000"),
        ({"name": "resnet8", "in_channels": 10**12}, "in_channels is 1000000000000"),
        ({"name": "resnet8", "width": 0}, "width is 0"),
        ({"name": "resnet8", "width": 1.5}, "width is 1.5"),
        ({"name": "resnet8", "width": True}, "width is True"),
        ({"name": "resnet8", "patch": 0}, "patch is 0"),
        ({"name": "resnet8", "patch": 9}, "patch is 9"),
        ({"name": "small_cnn", "patch": 2}, "patch"),
        ({"name": "resnet8", "depth": 3}, "depth"),
        ({"name": "resnet8", "mean": [0.5]}, "mean has 1 values; needed: one per channel, 3"),
        ({"name": "resnet8", "mean": 5}, "mean is 5"),
        ({"name": "resnet8", "mean": ["a", "b", "c"]}, "mean is"),
        ({"name": "resnet8", "mean": [[1], [2], [3]]}, "mean is"),
        ({"name": "resnet8", "std": [0.5, 0.5, 0]}, "std is 0.0"),
        ({"name": "resnet8", "std": [0.5, 0.5, float("nan")]}, "std is nan"),
    ],
)
def test_specs_that_nobody_can_build_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(spec)


def test_whole_floats_count_as_whole_numbers() -> None:
    spec = spec_of(models.small_cnn(4.0, 1.0, 2.0))  # type: ignore[arg-type]
    assert spec is not None
    assert (spec["num_classes"], spec["in_channels"], spec["width"]) == (4, 1, 2)
    with pytest.raises(InputTypeError, match="must be a mapping"):
        build([])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (3, 8, 8), (2, 4, 8, 8)])
def test_images_of_another_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"allowed: \(batch, 3, height, width\)"):
        models.small_cnn(4, 3, 2)(torch.rand(shape))
