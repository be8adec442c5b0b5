"""What happens before the first step: data, device, ranges, and the optimizer with its groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from squint import data as D
from squint._checks import InputError, check_labels, describe
from squint._random import derive_generator, noise
from squint.data.dataset import to_unit
from squint.ensemble import Ensemble
from squint.quantize import calibrate, needs_calibration, quantizers
from squint.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_fabric(config: TrainConfig) -> Fabric:
    """Return the launched device layer that the configuration asks for.

    Raises:
        squint.InputError: CUDA is asked for and missing.
    """
    # Imported here: it takes seconds, which commands that do not train should not pay.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    class Pixels(MixedPrecision):
        """Mixed precision that leaves images as they are: eight bits of mantissa would move the pixels."""

        def convert_input(self, data: object) -> object:
            return data

    available = torch.cuda.is_available()
    if config.accelerator == "cuda" and not available:
        raise InputError("train.accelerator is 'cuda'; this machine has no CUDA device, allowed: auto, cpu")
    accelerator = "cuda" if available and config.accelerator != "cpu" else "cpu"
    plugins = None
    if config.precision == "bf16-mixed" or (config.precision == "16-mixed" and accelerator == "cuda"):
        plugins = Pixels(config.precision, accelerator)
    fabric = Fabric(accelerator=accelerator, devices=config.devices, plugins=plugins)
    fabric.launch()
    if config.batch_size % fabric.world_size:
        raise InputError(
            f"train.batch_size is {config.batch_size}; allowed: a multiple of the {fabric.world_size} devices"
        )
    return fabric


def gathered(data: D.Data) -> tuple[Tensor, Tensor]:
    """Return all images (bytes of an `ImageData` stay bytes) and labels, checked."""
    if isinstance(data, D.ImageData):
        if len(data) == 0:
            raise InputError(f"{data.name} holds no images")
        return data.images, data.labels
    return D.collect(data)


def as_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return images as numbers of `dtype` in [0, 1]."""
    return (to_unit(images) if images.dtype == torch.uint8 else images).to(dtype)


def prepare(ens: Ensemble, images: Tensor, config: TrainConfig) -> int:
    """Set missing quantizer ranges from training images, and return the number of classes.

    Raises:
        squint.InputError: images that the members do not take, or nothing to train.
    """
    parameters = [p for p in ens.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the ensemble has no trainable parameters")
    order = D.epoch_permutation(len(images), derive_generator(config.seed, "calibration"))
    chosen = images[order[: config.calibration_images].to(images.device)]
    chosen = as_float(chosen, parameters[0].dtype).to(parameters[0].device)
    ens.eval()
    with torch.no_grad(), noise(derive_generator(config.seed, "calibration noise")):
        try:
            if needs_calibration(ens):
                calibrate(ens, chosen)
            return ens.member_logits(chosen[:1], 1).shape[-1]
        except RuntimeError as error:
            raise InputError(
                f"images of shape {tuple(images.shape[1:])} do not fit the members: {describe(error)}"
            ) from error


def check_classes(labels: Tensor, num_classes: int, name: str) -> None:
    """Raise `InputError` unless every label is a class of the networks."""
    check_labels(labels, len(labels), num_classes, name)


def make_optimizer(ens: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer: weights decay, biases, normalization and quantizers do not."""
    own = {id(p) for quantizer in quantizers(ens) for p in quantizer.parameters()}
    parameters = [p for p in ens.parameters() if p.requires_grad]
    decays = [p for p in parameters if p.ndim >= 2 and id(p) not in own]
    rest = [p for p in parameters if p.ndim < 2 or id(p) in own]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decays, config.weight_decay), (rest, 0.0))
        if group
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate)


@torch.no_grad()
def update_average(average: dict[str, Tensor], ens: nn.Module, decay: float, step: int) -> None:
    """Move the running average towards the weights; early on it follows them more closely."""
    decay = min(decay, (1 + step) / (10 + step))
    state = ens.state_dict()
    for name, kept in average.items():
        if kept.is_floating_point():
            kept.lerp_(state[name], 1 - decay)
        else:
            kept.copy_(state[name])
