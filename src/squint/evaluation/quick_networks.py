"""squint's own networks in a frozen copy: additions and rectifications in place, or left to the layer behind.

A rectified value that only a quantizer from zero reads need not be written: a negative value rounds to the
lowest level anyway.
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from squint.evaluation.code_layers import CodeConv2d
from squint.models.networks import ResNet, SmallCNN, _Block


class _QuickBlock(_Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(_rectified(self.conv1(x), self.conv2)).add_(self.shortcut(x))
        return F.relu(y, inplace=True)


class _QuickResNet(ResNet):
    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) for images (batch, channels, height, width) in [0, 1]."""
        x = self.stages(F.relu(self.stem(self.normalize(x)), inplace=True))
        return cast(Tensor, self.classifier(x.mean((2, 3))))


class _QuickSmallCNN(SmallCNN):
    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) for images (batch, channels, height, width) in [0, 1]."""
        x = _rectified(self.conv1(self.normalize(x)), self.conv2)
        x = F.relu(self.conv3(_rectified(self.conv2(x), self.conv3)), inplace=True)
        return cast(Tensor, self.classifier(x.mean((2, 3))))


_QUICK: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    _Block: (_QuickBlock, ("conv2",)),
    ResNet: (_QuickResNet, ()),
    SmallCNN: (_QuickSmallCNN, ("conv2", "conv3")),
}
"""The quick form of a network, and the convolutions that read nothing but rectified values."""


def quicken(network: nn.Module) -> None:
    """Give a frozen network of squint's own its quick form; its state and its printed layers stay."""
    quick, behind = _QUICK.get(type(network), (None, ()))
    if quick is None:
        return
    for name in behind:
        layer = getattr(network, name)[0]
        if isinstance(layer, CodeConv2d) and layer.zero_point == 0:
            layer.rectifies = True
    cast(Any, network).__class__ = quick


def _rectified(x: Tensor, behind: nn.Module) -> Tensor:
    """Return max(x, 0), or x where the layer behind rectifies."""
    layer = cast(Any, behind)[0]
    leaves = isinstance(layer, CodeConv2d) and layer.rectifies
    return x if leaves else F.relu(x, inplace=True)
