"""Labelled images in memory as uint8, and how validation images are held out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_number
from squint._random import derive_generator


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]: exactly float32(k / 255) on every device."""
    # A Python scalar would be turned into a multiplication by 1/255 on GPUs, which is off by one ulp.
    return images.float() / torch.full((), 255.0, device=images.device)


def check_label_range(labels: Tensor, num_classes: int, source: str | Path) -> None:
    """Raise `InputError` naming `source` and the first label that is not in 0..num_classes-1."""
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise InputError(
            f"{source}: label {int(labels[place])} of image {place}; allowed: 0..{num_classes - 1}"
        )


def need_generator(generator: torch.Generator | None, who: str) -> torch.Generator:
    """Return `generator`, or raise `InputTypeError` that says who needs one."""
    if not isinstance(generator, torch.Generator):
        raise InputTypeError(f"{who} needs a torch.Generator, got {type(generator).__name__}")
    return generator


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images of one size, held in memory as bytes.

    Attributes:
        images: uint8 (n, channels, height, width).
        labels: int64 (n,) in 0..num_classes-1.
        class_names: one name per class.
        name: what the set is called in records.

    Raises:
        InputError: wrong shapes or dtypes, or a label out of range.
        InputTypeError: images or labels that are no tensors.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for field in ("images", "labels"):
            value = getattr(self, field)
            if not isinstance(value, Tensor):
                raise InputTypeError(
                    f"{self.name}: {field} must be a torch.Tensor, got {type(value).__name__}"
                )
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or 0 in self.images.shape[1:]:
            raise InputError(
                f"{self.name}: images have shape {tuple(self.images.shape)} and dtype {self.images.dtype}; "
                "allowed: (n, channels, height, width) of torch.uint8"
            )
        if self.labels.dtype != torch.int64 or tuple(self.labels.shape) != (len(self.images),):
            raise InputError(
                f"{self.name}: labels have shape {tuple(self.labels.shape)} and dtype {self.labels.dtype}; "
                f"allowed: ({len(self.images)},) of torch.int64"
            )
        check_label_range(self.labels, self.num_classes, self.name)

    @property
    def num_classes(self) -> int:
        """Return the number of classes, whether or not each occurs."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageData:
        """Return the images at `indices` (0..n-1), in that order, with all class names."""
        index = self._index(indices)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def float_images(self, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return all images, or those at `indices`, as float32 in [0, 1] (bytes over 255)."""
        return to_unit(self.images if indices is None else self.images[self._index(indices)])

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (float32 images in [0, 1], int64 labels)."""
        return self.float_images(), self.labels

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def _index(self, indices: Tensor | Sequence[int]) -> Tensor:
        index = torch.as_tensor(indices, device=self.images.device)
        if index.numel() == 0:
            return index.long().view(0)
        if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
            raise InputError(
                f"{self.name}: indices have shape {tuple(index.shape)} and dtype {index.dtype}; "
                "allowed: a list of whole numbers"
            )
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= len(self):
            raise InputError(f"{self.name}: indices lie in [{low}, {high}]; allowed: 0..{len(self) - 1}")
        return index.long()


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images; no image is in two of them."""

    train: ImageData
    validation: ImageData
    test: ImageData


def stratified_split(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (kept, held_out): sorted indices, `count` of them held out in proportion to the classes.

    Each class gives the floor of its share; the places left go to the largest remainders (to the lower
    class where they tie), so the total is exact and no class is off by one image or more.

    Args:
        labels: int64 (n,).
        count: how many to hold out, 0..n.
        generator: chooses which images of each class.
    """
    labels = labels.cpu()
    sizes = torch.bincount(labels)
    shares = sizes * count
    quota = shares // max(len(labels), 1)
    remainder = shares - quota * len(labels)
    extra = remainder.argsort(descending=True, stable=True)[: count - int(quota.sum())]
    quota[extra] += 1
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label, take in enumerate(quota.tolist()):
        places = (labels == label).nonzero().flatten()
        order = torch.randperm(len(places), generator=generator, device=generator.device).cpu()
        held[places[order[:take]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def hold_out(data: ImageData, amount: float, *, seed: int, purpose: str) -> tuple[ImageData, ImageData]:
    """Return (kept, held out), stratified by class; the choice depends on seed, purpose and labels only.

    Args:
        data: the images to split.
        amount: a number of images (int, 0..n-1) or a share of them (float in [0, 1), at least one image
            unless 0).
        seed: any whole number.
        purpose: `validation` or `test`; names the stream and the error.
    """
    n = len(data)
    if isinstance(amount, float):
        share = check_number(purpose, amount, 0.0, 1.0)
        count = max(round(share * n), 1) if share > 0 else 0
    else:
        count = int(check_number(purpose, amount, 0, whole=True))
    if count >= n:
        raise InputError(
            f"{purpose} is {amount!r}, {count} of the {n} images of {data.name}; "
            f"allowed: fewer than {n} images, or a share in [0, 1)"
        )
    kept, held = stratified_split(data.labels, count, derive_generator(seed, purpose, n))
    return data.subset(kept), data.subset(held)
