"""What happens before the first step: data, device, ranges, and the optimizer with its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from squint import data as D
from squint._checks import InputError, check_labels, describe
from squint._memory import is_out_of_memory
from squint._random import derive_generator, noise
from squint.data.dataset import to_unit
from squint.ensemble import Ensemble
from squint.quantize import calibrate, cover_readers, needs_calibration, quantizers
from squint.training.config import TrainConfig
from squint.training.muon import MATRICES, Muon


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
                calibrate(ens, chosen, missing=True)
            else:
                cover_readers(ens, chosen)
            return ens.member_logits(chosen[:1], 1).shape[-1]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"images of shape {tuple(images.shape[1:])} do not fit the members: {describe(error)}"
            ) from error


def check_classes(labels: Tensor, num_classes: int, name: str) -> None:
    """Raise `InputError` unless every label is a class of the networks."""
    check_labels(labels, len(labels), num_classes, name)


def make_optimizer(ens: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer: weights decay, biases, normalization and quantizers do not.

    Muon's own are the weights of each member's inner layers; those of its first and its last layer belong to
    AdamW, as Jordan et al. (2024) have it.

    Args:
        ens: the ensemble.
        config: how to train.
        device: where the training will run.
    """
    own = {id(p) for quantizer in quantizers(ens) for p in quantizer.parameters()}
    parameters = [p for p in ens.parameters() if p.requires_grad]
    decays = [p for p in parameters if p.ndim >= 2 and id(p) not in own]
    rest = [p for p in parameters if p.ndim < 2 or id(p) in own]
    inner = _inner(ens, decays) if config.optimizer == "muon" else set()
    groups: list[dict[str, Any]] = [
        {"params": group, "weight_decay": decay} | ({MATRICES: True} if matrices else {})
        for group, decay, matrices in (
            ([p for p in decays if id(p) not in inner], config.weight_decay, False),
            ([p for p in decays if id(p) in inner], config.weight_decay, True),
            (rest, 0.0, False),
        )
        if group
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
        )
    # On a GPU Fabric cannot clip the gradients of a fused optimizer, and torch's own choice is as fast.
    fused = config.compile and device.type == "cpu"
    if config.optimizer == "muon":
        return Muon(groups, config.learning_rate, fused=fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def _inner(ens: nn.Module, weights: Sequence[Tensor]) -> set[int]:
    """Return the identities of every member's weights but its first and its last one."""
    known = {id(weight) for weight in weights}
    inner: set[int] = set()
    for member in ens.members if isinstance(ens, Ensemble) else [ens]:
        inner |= {id(p) for p in [p for p in member.parameters() if id(p) in known][1:-1]}
    return inner


@torch.no_grad()
def update_average(average: dict[str, Tensor], state: dict[str, Tensor], decay: float, step: int) -> None:
    """Move the running average towards the weights; early on it follows them more closely."""
    decay = min(decay, (1 + step) / (10 + step))
    # One kernel for many tensors: a GPU waits for the thousand small ones of a deep ensemble.
    alike: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for name, kept in average.items():
        before, now = alike.setdefault(kept.dtype, ([], []))
        before.append(kept)
        now.append(state[name])
    for dtype, (before, now) in alike.items():
        if dtype.is_floating_point:
            torch._foreach_lerp_(before, now, 1 - decay)
        else:
            torch._foreach_copy_(before, now)


def devices_in_use() -> list[torch.device]:
    """Return the GPU whose generator a training uses, where one has been used already."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.device("cuda", torch.cuda.current_device())] if initialized else []


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's own generators, which the caller puts back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
