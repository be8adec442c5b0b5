"""Adversarial images in files: what is saved, and what is asked of anyone's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from squint import data as D
from squint._checks import InputError, check_number, format_fraction, parse_fraction
from squint.data.dataset import to_unit
from squint.evaluation.arrays import Array, read_npz, write_npz
from squint.evaluation.batch_outcomes import as_array
from squint.evaluation.ladder_result import LadderResult

FORMAT = 1
MAX_BYTES = 2**30
BYTE_TOLERANCE = 1 / 510
"""How much further than eps an image of bytes may lie: half a grey level, the most that rounding moves it."""
FLOAT_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Evidence:
    """The worst adversarial image found for each of n images of a data set.

    Attributes:
        index: places of the images in the data (n,).
        labels: true labels (n,).
        images: adversarial images, uint8 (n, channels, height, width).
        rung: rung that broke each image, 0 where the clean image errs, -1 where none did (n,).
        correct: share of correct deployments when the evidence was made (n,), in [0, 1].
        resubmissions: deployments behind `correct`.
        eps: L∞ radius.
        system: name of the attacked system.
        draws: S of those deployments; None where a file does not say.
    """

    index: Tensor
    labels: Tensor
    images: Tensor
    rung: Tensor
    correct: Tensor
    resubmissions: int
    eps: float
    system: str
    draws: int | None = None


def evidence_of(result: LadderResult) -> Evidence:
    """Return the ladder's worst points as evidence, with the score of their bytes."""
    return Evidence(
        torch.arange(len(result.labels)),
        result.labels,
        result.points_uint8,
        result.climb.broken_by,
        result.rounded.correct,
        result.rounded.resubmissions,
        float(result.configuration["eps_value"]),
        str(result.configuration["system"]),
        int(result.configuration["draws"]),
    )


def save_evidence(path: Path | str, evidence: Evidence) -> None:
    """Write evidence as one npz file without pickle, whole or not at all."""
    tensors = ("index", "labels", "images", "rung", "correct")
    arrays: dict[str, Array] = {name: as_array(getattr(evidence, name)) for name in tensors}
    arrays |= {
        "resubmissions": np.asarray(evidence.resubmissions),
        "eps": np.asarray(evidence.eps),
        "system": np.asarray(evidence.system),
        "format": np.asarray(FORMAT),
    }
    if evidence.draws is not None:
        arrays["draws"] = np.asarray(evidence.draws)
    write_npz(Path(path), arrays)


def load_evidence(path: Path | str) -> Evidence:
    """Return the evidence of a file of `save_evidence`.

    Raises:
        squint.InputError: the file is missing, damaged, too large or of another format.
    """
    path = Path(path)
    arrays = read_npz(path, max_bytes=MAX_BYTES)
    if _number(arrays, "format", path) != FORMAT:
        raise InputError(f"{path} has evidence format {arrays['format']}; allowed: {FORMAT}")
    images, index, labels = submitted(arrays, path)
    if images.dtype != torch.uint8:
        raise InputError(f"{path}: images have dtype {images.dtype}; evidence holds torch.uint8")
    rung, correct = (_tensor(arrays, name, path) for name in ("rung", "correct"))
    for name, tensor in (("rung", rung), ("correct", correct)):
        if tensor.shape != index.shape:
            raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}; needed: ({len(index)},)")
    if not bool(((correct >= 0) & (correct <= 1)).all()):
        raise InputError(f"{path}: correct has values outside [0, 1]")
    return Evidence(
        index,
        labels,
        images,
        rung.long(),
        correct.double(),
        int(check_number("resubmissions", _number(arrays, "resubmissions", path), 1, whole=True)),
        parse_fraction("eps", _number(arrays, "eps", path)),
        str(arrays["system"]) if "system" in arrays else "",
        int(check_number("draws", _number(arrays, "draws", path), 1, whole=True))
        if "draws" in arrays
        else None,
    )


def submitted(arrays: dict[str, Array], path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, index and labels of a file, of the right kinds and shapes."""
    images, index, labels = (_tensor(arrays, name, path) for name in ("images", "index", "labels"))
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise InputError(f"{path}: images have dtype {images.dtype}; allowed: uint8, or float in [0, 1]")
    if images.ndim != 4 or not images.numel():
        raise InputError(
            f"{path}: images have shape {tuple(images.shape)}; needed: (n, channels, height, width)"
        )
    for name, tensor in (("index", index), ("labels", labels)):
        whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
        if tensor.shape != images.shape[:1] or not whole:
            raise InputError(
                f"{path}: {name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
                f"needed: ({len(images)},) whole numbers"
            )
    if len(set(index.tolist())) < len(index):
        raise InputError(f"{path}: index names an image twice; allowed: distinct places")
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(f"{path}: images have values outside [0, 1] or NaN; allowed: [0, 1]")
    return images, index.long(), labels.long()


def _tensor(arrays: dict[str, Array], name: str, path: Path) -> Tensor:
    if name not in arrays:
        raise InputError(f"{path} has no array {name!r}; it has {', '.join(sorted(arrays)) or 'none'}")
    array: Any = arrays[name]
    if array.dtype.kind not in "uifb":
        raise InputError(f"{path}: {name} has dtype {array.dtype}; allowed: numbers")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.from_numpy(np.asarray(array.astype(array.dtype.newbyteorder("=")), order="C"))


def _number(arrays: dict[str, Array], name: str, path: Path) -> float:
    tensor = _tensor(arrays, name, path)
    if tensor.ndim:
        raise InputError(f"{path}: {name} has shape {tuple(tensor.shape)}; needed: one number")
    return float(tensor)


def fitting(data: D.Data, images: Tensor, index: Tensor, labels: Tensor, eps: float, source: str) -> Tensor:
    """Return the adversarial images as floats, after every one of them has been held against the data."""
    clean, truth = D.collect(data)
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= len(clean):
        raise InputError(f"{source} names images {low}..{high}; allowed: 0..{len(clean) - 1}")
    if images.shape[1:] != clean.shape[1:]:
        raise InputError(
            f"{source} has images of shape {tuple(images.shape[1:])}; the data's: {tuple(clean.shape[1:])}"
        )
    wrong = (labels != truth[index].cpu()).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{source} labels image {int(index[row])} {int(labels[row])}; its label is "
            f"{int(truth[index[row]])}"
        )
    in_bytes = images.dtype == torch.uint8
    points = to_unit(images) if in_bytes else images
    distance = (points.double() - clean[index].cpu().double()).abs().flatten(1).amax(1)
    reach = eps + (BYTE_TOLERANCE if in_bytes else 0.0) + FLOAT_TOLERANCE
    if bool((distance > reach).any()):
        row = int(distance.argmax())
        raise InputError(
            f"{source}: image {int(index[row])} lies {float(distance[row]):.6f} from the clean one; allowed: "
            f"eps {format_fraction(eps)} = {eps:.6f}{' + 1/510 for rounding to bytes' if in_bytes else ''}"
        )
    return points.to(clean.dtype)
