"""A network behind gaussian noise on its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from squint.baselines.conversion import ConvertedNetwork
from squint.baselines.gaussian import GaussianNoise


class NoisyImageNetwork(ConvertedNetwork):
    """Adds normal noise to the image, before the network's normalization; nothing is clipped afterwards.

    Args:
        network: the network.
        rival: name and options of the rival that made it.
        sigma: standard deviation, in pixel units.
    """

    def __init__(self, network: nn.Module, rival: Mapping[str, Any], sigma: float) -> None:
        super().__init__(network, rival)
        self.noise = GaussianNoise(sigma)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) for images (batch, channels, height, width) in [0, 1]."""
        return super().forward(self.noise(x))
