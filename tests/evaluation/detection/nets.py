from __future__ import annotations

import torch
from torch import Tensor

from squint import Ensemble, calibrate, noise, quantize
from squint import data as D
from squint.models import small_cnn


def untrained(members: int = 2, draws: int = 3, seed: int = 0) -> tuple[Ensemble, Tensor, Tensor]:
    """Return a stochastic ensemble of small networks with large random weights, images and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = [
            quantize(small_cnn(4, 1, 4), 4, 4, 1, first_last_bits=8, activation_width=0.0)
            for _ in range(members)
        ]
    data = D.load("digits").train
    images, labels = data.float_images()[:400], data.labels[:400] % 4
    for net in built:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(2.0)
        with noise(torch.Generator().manual_seed(seed)):
            calibrate(net, images[:64])
    return Ensemble(built, draws).eval(), images, labels
