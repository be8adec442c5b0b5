"""Which ensemble a detector was fitted for."""

from __future__ import annotations

import hashlib

import torch

from squint.ensemble import Ensemble
from squint.quantize import quantizers


def fingerprint(ens: Ensemble) -> str:
    """Return a hash of every weight and buffer and of the quantizers' noise; the same on every device."""
    digest = hashlib.sha256()
    for name, value in sorted(ens.state_dict().items()):
        held = value.detach().cpu().contiguous()
        digest.update(f"{name} {held.dtype} {tuple(held.shape)}".encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(repr(_noises(ens)).encode())
    return digest.hexdigest()[:32]


def versions(ens: Ensemble) -> tuple[object, ...]:
    """Return what changes whenever a tensor of the ensemble is written or replaced, or its noise set."""
    tensors = [*ens.parameters(), *ens.buffers()]
    return (*((t.data_ptr(), t._version) for t in tensors), *_noises(ens))


def _noises(ens: Ensemble) -> list[tuple[str, str, str]]:
    # What moves the scores of a network and is no tensor of it.
    return [(q.rounding, q.noise, q.granularity) for q in quantizers(ens)]


def other_ensemble(expected: str, found: str) -> str:
    """Return what a person reads when a detector meets an ensemble that it was not fitted for."""
    return (
        f"the detector was fitted for another ensemble: its weights and noise have fingerprint "
        f"{expected}, this ensemble's have {found}; fit the detector again"
    )
