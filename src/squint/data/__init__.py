"""Data sets in memory, seeded batches and augmentation on the device."""

from squint.data.augment import Augmentation, cutout, random_crop, random_flip
from squint.data.batching import Batch, Data, batches, collect, epoch_permutation, iterate
from squint.data.catalog import IMAGE_SHAPES, NAMES, load
from squint.data.dataset import ImageData, Splits
from squint.data.folder import load_folder

__all__ = [
    "IMAGE_SHAPES",
    "NAMES",
    "Augmentation",
    "Batch",
    "Data",
    "ImageData",
    "Splits",
    "batches",
    "collect",
    "cutout",
    "epoch_permutation",
    "iterate",
    "load",
    "load_folder",
    "random_crop",
    "random_flip",
]
