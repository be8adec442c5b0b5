"""A small CNN and CIFAR residual networks (He et al. 2016), of variable width."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint._checks import InputError, InputTypeError, check_choice, check_number

_MOST_CLASSES = 10**6
_MOST_CHANNELS = 4096
_LARGEST_PATCH = 8


class Normalize(nn.Module):
    """(x - mean)/std per channel; part of the model, so that images everywhere are in [0, 1].

    Grayscale images are shown to every channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        super().__init__()
        for name, values, default in (("mean", mean, 0.5), ("std", std, 0.25)):
            held = list(values) if values is not None else [default] * in_channels
            if len(held) != in_channels:
                raise InputError(f"{name} has {len(held)} values; needed: one per channel, {in_channels}")
            for value in held:
                check_number(name, value, 0, 1, open_low=name == "std")
            self.register_buffer(name, torch.tensor(held, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return normalized images (batch, channels, height, width).

        Raises:
            squint.InputError: images of another shape.
        """
        channels = self.mean.shape[0]
        if x.ndim != 4 or x.shape[1] not in (1, channels):
            raise InputError(
                f"images have shape {tuple(x.shape)}; allowed: (batch, {channels}, height, width)"
            )
        return (x - self.mean) / self.std


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class SmallCNN(nn.Module):
    """Three convolutions and a linear layer, for 8x8 and 28x28 images."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        width: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(in_channels, mean, std)
        self.conv1 = _conv(in_channels, width)
        self.conv2 = _conv(width, 2 * width, 2)
        self.conv3 = _conv(2 * width, 4 * width, 2)
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) for images (batch, channels, height, width) in [0, 1]."""
        x = F.relu(self.conv1(self.normalize(x)))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return cast(Tensor, self.classifier(x.mean((2, 3))))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.conv2 = _conv(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else _conv(inputs, outputs, stride, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small images: a stem, stages of basic blocks, mean pooling."""

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int,
        in_channels: int,
        width: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(in_channels, mean, std)
        self.stem = _conv(in_channels, width) if patch == 1 else _conv(in_channels, width, patch, 2 * patch)
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(count):
                layers.append(_Block(inputs, outputs, 2 if block == 0 and stage > 0 else 1))
                inputs = outputs
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) for images (batch, channels, height, width) in [0, 1]."""
        x = self.stages(F.relu(self.stem(self.normalize(x))))
        return cast(Tensor, self.classifier(x.mean((2, 3))))


def _built(
    name: str,
    make: Callable[..., nn.Module],
    num_classes: int,
    in_channels: int,
    width: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    patch: int | None = None,
) -> nn.Module:
    sizes = {
        "num_classes": int(check_number("num_classes", num_classes, 2, _MOST_CLASSES, whole=True)),
        "in_channels": int(check_number("in_channels", in_channels, 1, _MOST_CHANNELS, whole=True)),
        "width": int(check_number("width", width, 1, _MOST_CHANNELS, whole=True)),
    }
    if patch is not None:
        check_number("patch", patch, 1, _LARGEST_PATCH, whole=True)
        # Networks without patches keep the spec that they have always had.
        sizes |= {} if patch == 1 else {"patch": int(patch)}
    statistics = {key: _floats(key, values) for key, values in (("mean", mean), ("std", std))}
    model = make(**sizes, **statistics)
    # What `build` needs to make this network again; saved beside the weights.
    spec = {"name": name, **sizes, **statistics}
    object.__setattr__(model, "squint_spec", spec)
    return model


def _floats(name: str, values: Sequence[float] | None) -> list[float] | None:
    """Return plain numbers, whatever sequence or tensor held them."""
    if values is None:
        return None
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {values!r}; allowed: one number per channel, or None") from None


def small_cnn(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Return a `SmallCNN` of `width`, 2 and 4 times `width` channels, for 8x8 and 28x28 images.

    Args:
        num_classes: number of outputs, 2 or more.
        in_channels: image channels.
        width: channels of the first layer.
        mean: per-channel mean of images in [0, 1]; None: 0.5.
        std: per-channel standard deviation; None: 0.25.
    """
    return _built("small_cnn", SmallCNN, num_classes, in_channels, width, mean, std)


def resnet8(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch: int = 1,
) -> nn.Module:
    """Return a ResNet-8 (three stages of one block).

    Args:
        num_classes: number of outputs, 2 or more.
        in_channels: image channels.
        width: channels of the first layer.
        mean: per-channel mean of images in [0, 1]; None: 0.5.
        std: per-channel standard deviation; None: 0.25.
        patch: 1 for a stem of 3x3 pixels; 2 to 8 for one of 2 x `patch` pixels and stride `patch`, so that
            all that follows sees images of 1/`patch` the side.
    """
    return _built("resnet8", partial(ResNet, (1, 1, 1)), num_classes, in_channels, width, mean, std, patch)


def resnet20(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch: int = 1,
) -> nn.Module:
    """Return a ResNet-20 (three stages of three blocks); arguments as in `resnet8`."""
    return _built("resnet20", partial(ResNet, (3, 3, 3)), num_classes, in_channels, width, mean, std, patch)


def resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patch: int = 1,
) -> nn.Module:
    """Return a ResNet-18 for small images (four stages of two blocks); arguments as in `resnet8`."""
    return _built(
        "resnet18", partial(ResNet, (2, 2, 2, 2)), num_classes, in_channels, width, mean, std, patch
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet18": resnet18,
}


def build(spec: Mapping[str, Any]) -> nn.Module:
    """Return the network that a spec (from `spec_of`) describes, with fresh weights.

    Raises:
        squint.InputError: an unknown network or an argument that it does not take.
    """
    if not isinstance(spec, Mapping):
        raise InputTypeError(f"a network's spec must be a mapping, got {type(spec).__name__}")
    arguments = dict(spec)
    name = arguments.pop("name", None)
    check_choice("model", str(name), MODELS)
    try:
        return MODELS[str(name)](**arguments)
    except TypeError as error:
        raise InputError(f"model {name}: {error}") from None


def spec_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the plain data from which `build` makes this network again, or None for other networks."""
    spec = getattr(model, "squint_spec", None)
    return dict(spec) if isinstance(spec, dict) else None
