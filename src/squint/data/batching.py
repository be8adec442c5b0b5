"""Seeded batches of float images, and one way to read everything that counts as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_images, check_labels, check_number
from squint.data.dataset import ImageData, need_generator, to_unit

Batch = tuple[Tensor, Tensor]
"""Images (batch, channels, height, width) and labels (batch,)."""

Data = ImageData | Batch | Iterable[Batch]
"""What squint takes as data: one pair (images, labels), an iterable of such pairs, or `ImageData`."""


def epoch_permutation(n: int, generator: torch.Generator) -> Tensor:
    """Return a permutation of 0..n-1, int64 on the generator's device; advances the generator."""
    generator = need_generator(generator, "a shuffled epoch")
    return torch.randperm(n, generator=generator, device=generator.device)


def batches(
    data: ImageData,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    shuffle: bool = False,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Return an iterator over one epoch of (float32 images in [0, 1], int64 labels).

    The order is drawn when this is called, so the generator's state afterwards does not depend on how far
    the epoch is read.

    Args:
        data: images in memory; batches are on their device.
        batch_size: images per batch, at least 1.
        generator: draws the order; needed, and used, only with `shuffle`.
        shuffle: visit the images in a random order.
        drop_last: leave out a last batch that is not full.

    Raises:
        InputError: a batch size below 1.
        InputTypeError: `shuffle` without a generator, or data that is not `ImageData`.
    """
    if not isinstance(data, ImageData):
        raise InputTypeError(f"batches needs ImageData, got {type(data).__name__}; `iterate` takes the rest")
    check_number("batch_size", batch_size, 1, whole=True)
    order = epoch_permutation(len(data), need_generator(generator, "shuffle=True")) if shuffle else None
    return _epoch(data, batch_size, order, drop_last)


def _epoch(data: ImageData, batch_size: int, order: Tensor | None, drop_last: bool) -> Iterator[Batch]:
    if order is not None:
        order = order.to(data.images.device)
    end = len(data) - len(data) % batch_size if drop_last else len(data)
    for start in range(0, end, batch_size):
        stop = min(start + batch_size, end)
        chosen = slice(start, stop) if order is None else order[start:stop]
        yield to_unit(data.images[chosen]), data.labels[chosen]


def iterate(data: Data, batch_size: int) -> Iterator[Batch]:
    """Return an iterator over (float images in [0, 1], int64 labels), in order, at most `batch_size` each.

    Args:
        data: a pair of tensors, `ImageData`, or an iterable of pairs, whose batches are cut where they are
            longer and never joined. uint8 images are divided by 255; float images must lie in [0, 1] and
            keep their dtype.
        batch_size: the longest batch, at least 1.

    Raises:
        InputTypeError: anything else.
        InputError: images out of [0, 1], empty, or not one label per image.
    """
    check_number("batch_size", batch_size, 1, whole=True)
    if isinstance(data, ImageData):
        if len(data) == 0:
            raise InputError(f"{data.name} holds no images")
        return batches(data, batch_size)
    pair = _as_pair(data)
    if pair is not None:
        return _cut(*_checked(pair, ""), batch_size)
    if isinstance(data, Tensor | str | bytes | dict) or not isinstance(data, Iterable):
        raise InputTypeError(
            "data must be a pair (images, labels) of tensors, an iterable of such pairs or ImageData, "
            f"got {type(data).__name__}"
        )
    return _from_iterable(data, batch_size)


def _as_pair(item: object) -> Batch | None:
    """Return `item` if it is a tuple or list of two tensors."""
    if isinstance(item, tuple | list) and len(item) == 2:
        images, labels = item
        if isinstance(images, Tensor) and isinstance(labels, Tensor):
            return images, labels
    return None


def _checked(pair: Batch, place: str) -> Batch:
    images, labels = pair
    # Bytes are in range by nature: one image is enough for the shape, and `_cut` converts batch by batch.
    in_bytes = images.dtype == torch.uint8 and images.ndim > 0
    check_images(to_unit(images[:1]) if in_bytes else images, f"images{place}")
    check_labels(labels, len(images), name=f"labels{place}")
    return images, labels.long()


def _cut(images: Tensor, labels: Tensor, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(images), batch_size):
        x = images[start : start + batch_size]
        yield to_unit(x) if x.dtype == torch.uint8 else x, labels[start : start + batch_size]


def _from_iterable(data: Iterable[object], batch_size: int) -> Iterator[Batch]:
    count = 0
    for item in data:
        pair = _as_pair(item)
        if pair is None:
            raise InputTypeError(
                f"batch {count} of the data must be a pair (images, labels) of batched tensors, "
                f"got {type(item).__name__}; a Dataset of single images goes through a DataLoader first"
            )
        yield from _cut(*_checked(pair, f" of batch {count}"), batch_size)
        count += 1
    if count == 0:
        raise InputError("data holds no batches; an iterator that was read before is empty the second time")


def collect(data: Data, limit: int | None = None) -> Batch:
    """Return the first `limit` (or all) images as float in [0, 1] and their int64 labels.

    Reads no more batches than it needs.

    Args:
        data: as for `iterate`.
        limit: how many images at most, at least 1.
    """
    if limit is not None:
        check_number("limit", limit, 1, whole=True)
    parts: list[Batch] = []
    count = 0
    for images, labels in iterate(data, limit or 4096):
        take = len(images) if limit is None else min(len(images), limit - count)
        parts.append((images[:take], labels[:take]))
        count += take
        if parts[0][0].shape[1:] != images.shape[1:]:
            raise InputError(
                f"images of different shapes, {tuple(parts[0][0].shape[1:])} and {tuple(images.shape[1:])}; "
                "allowed: one shape"
            )
        if count == limit:
            break
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
