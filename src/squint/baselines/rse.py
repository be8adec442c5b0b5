"""RSE: fixed gaussian noise before every convolution, and the mean of several predictions.

Liu, Cheng, Zhang and Hsieh 2018, "Towards Robust Neural Networks via Random Self-Ensemble", ECCV,
arXiv:1712.00673. Training minimises E[CE(f(x; n), y)] over one draw of the noise per step (algorithm 1);
the prediction is argmax sum_s p(c | x; n_s) over draws s. From the paper: noise of standard deviation 0.2
before the first convolution and 0.1 before the others (CIFAR-10, VGG16). What departs: the first noise is
added to the image itself, before the network's own normalization, so that 0.2 is in pixel units whatever
the data set; the prediction averages the draws that the study deploys (the paper: 10).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn.modules.conv import _ConvNd

from squint.baselines.conversion import Wrapped, replace_layers, weighted_layers
from squint.baselines.gaussian import GaussianNoise
from squint.baselines.noisy_image import NoisyImageNetwork
from squint.baselines.rival import OPTIONS, Rival


@dataclass(config=OPTIONS)
class Rse(Rival):
    """Gaussian noise on the image and before every further convolution."""

    name: ClassVar[str] = "rse"
    own_layers: ClassVar[bool] = True
    image_sigma: float = Field(default=0.2, ge=0)
    """Standard deviation of the noise on the image, in pixel units."""
    inner_sigma: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise before the other convolutions, in units of their inputs."""

    def member(self, network: nn.Module, place: int) -> nn.Module:
        """Return the network with noise layers."""
        del place
        layers = weighted_layers(network)
        first = next(iter(layers))
        convolutions = {
            name: layer for name, layer in layers.items() if isinstance(layer, _ConvNd) and name != first
        }
        replace_layers(
            network, convolutions, lambda layer: Wrapped(layer, GaussianNoise(self.inner_sigma), None)
        )
        return NoisyImageNetwork(network, self.plain(), self.image_sigma)
