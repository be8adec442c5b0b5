"""Small networks that conversion is tried on, and one way through a quantizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from squint import noise
from squint.quantize import StochasticQuantizer


def distinct(values: Tensor) -> int:
    """Return how many different values a tensor holds."""
    return len(set(values.flatten().tolist()))


class Residual(nn.Module):
    """Two residual blocks with batch normalization, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList([self._block() for _ in range(2)])
        self.head = nn.Linear(8, 5)

    @staticmethod
    def _block() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def depthwise() -> nn.Module:
    """Return a network of depthwise and pointwise convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Hardswish(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class VisionTransformer(nn.Module):
    """Patches, two encoder layers of torch's own, and a linear layer on the mean token."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.place = nn.Parameter(0.1 * torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(3)))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first, norm_first=False)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.encoder(tokens)
        logits: Tensor = self.head(tokens.mean(1 if self.batch_first else 0))
        return logits


def through(quantizer: StochasticQuantizer, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return a quantizer's values under fixed noise, the input's gradient, and its parameters' gradients."""
    leaf = x.clone().requires_grad_()
    with noise(torch.Generator().manual_seed(3)):
        y = quantizer(leaf)
    gradients = torch.autograd.grad(y, [leaf, *quantizer.parameters()], grad)
    return y.detach(), gradients[0], list(gradients[1:])
