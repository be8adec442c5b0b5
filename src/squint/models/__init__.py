"""Networks that take images in [0, 1] (normalization inside) and rebuild themselves from plain data."""

from squint.models.networks import (
    MODELS,
    Normalize,
    ResNet,
    SmallCNN,
    build,
    resnet8,
    resnet18,
    resnet20,
    small_cnn,
    spec_of,
)

__all__ = [
    "MODELS",
    "Normalize",
    "ResNet",
    "SmallCNN",
    "build",
    "resnet8",
    "resnet18",
    "resnet20",
    "small_cnn",
    "spec_of",
]
