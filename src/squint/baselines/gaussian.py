"""Gaussian noise from squint's own streams: every draw folded into a batch has a stream of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from squint._random import current_source, random_integers
from squint.quantize.autograd import noise_values

_ROOT_12 = math.sqrt(12)


def gaussian(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return standard normal noise on the device and in the precision of `like`.

    It is the quantile of 16-bit uniform noise, so it ends at 4.3 standard deviations.

    Args:
        shape: the leading dimension holds the folded draws where there are several.
        like: tensor whose device and dtype it takes.
    """
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    values = noise_values(random_integers(shape, like.device), "gaussian", 2, wide)
    return (values * _ROOT_12).to(like.dtype)


def folded_draws() -> int:
    """Return how many draws are folded into the batch at this moment."""
    return len(current_source().streams)


def draws_alike() -> bool:
    """Return whether all folded draws have the same noise, as those of an attacker who knows it do."""
    source = current_source()
    # Streams of one batch are seeded together and drawn from together: equal seeds mean equal noise.
    return source.strata is None and len({one.generator.initial_seed() for one in source.streams}) == 1


class GaussianNoise(nn.Module):
    """Adds normal noise of a fixed standard deviation, in training and in evaluation.

    Args:
        sigma: standard deviation, in units of the input.
    """

    draws_noise = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def extra_repr(self) -> str:
        """Return the setting that `print(net)` shows."""
        return f"sigma={self.sigma:g}"

    def forward(self, x: Tensor) -> Tensor:
        """Return x + sigma * n, shaped like x (batch, ...)."""
        return x + self.sigma * gaussian(x.shape, x)
