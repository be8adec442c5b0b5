"""Small trained ensembles for the ONNX tests, each made once."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import squint
from squint import data as D


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, and test images and labels."""
    splits = D.load("digits")
    train, test = splits.train, splits.test
    return train.float_images(), train.labels, test.float_images(), test.labels


def trained(bits: tuple[int | None, ...], model: str = "small_cnn", **options: Any) -> squint.Ensemble:
    """Return an ensemble of width 4 after a few epochs on the digits, one member for each number of bits."""
    x, y, _, _ = digits()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bases = [squint.models.MODELS[model](10, 1, 4) for _ in bits]
    nets: list[nn.Module] = [
        base if b is None else squint.quantize(base, b, 4, 4, learn_range=False, **options)
        for base, b in zip(bases, bits, strict=True)
    ]
    ens = squint.Ensemble(nets, draws=2)
    squint.calibrate(ens, x[:256])
    optimizer = torch.optim.Adam(ens.parameters(), 1e-2)
    ens.train()
    for _ in range(3):
        for rows in torch.randperm(len(x), generator=generator).split(64):  # type: ignore[no-untyped-call]
            logits = ens.member_logits(x[rows], 1, generator=generator)[0]
            loss = torch.stack([nn.functional.cross_entropy(member, y[rows]) for member in logits]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return ens.eval()


@functools.cache
def pair() -> squint.Ensemble:
    """Return two noisy members of 2 and 4 bits. Shared by tests: do not change it."""
    return trained((2, 4))
