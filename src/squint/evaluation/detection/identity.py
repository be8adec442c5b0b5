"""Which ensemble a detector was fitted for."""

from __future__ import annotations

import hashlib

import torch

from squint.ensemble import Ensemble
from squint.quantize import quantizers


def fingerprint(ens: Ensemble) -> str:
    """Return a hash of every weight and buffer and of the quantizers' rounding; the same on every device."""
    digest = hashlib.sha256()
    for name, value in sorted(ens.state_dict().items()):
        held = value.detach().cpu().contiguous()
        digest.update(f"{name} {held.dtype} {tuple(held.shape)}".encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(" ".join(quantizer.rounding for quantizer in quantizers(ens)).encode())
    return digest.hexdigest()[:32]


def versions(ens: Ensemble) -> tuple[object, ...]:
    """Return what changes whenever a tensor of the ensemble is written or replaced, or its rounding set."""
    tensors = [*ens.parameters(), *ens.buffers()]
    return (*((t.data_ptr(), t._version) for t in tensors), *(q.rounding for q in quantizers(ens)))


def other_ensemble(expected: str, found: str) -> str:
    """Return what a person reads when a detector meets an ensemble that it was not fitted for."""
    return (
        f"the detector was fitted for another ensemble: its weights and rounding have fingerprint "
        f"{expected}, this ensemble's have {found}; fit the detector again"
    )
