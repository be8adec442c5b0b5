"""`calibrate(net, images)`: ranges and signedness of activations from the values that images produce."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from squint._checks import InputError, check_images
from squint.quantize.modes import quantizers
from squint.quantize.observer import RangeObserver, best_step, covering_step


def calibrate(net: nn.Module, images: Tensor) -> None:
    """Set the ranges of every activation quantizer inside `net` from the values that `images` produce.

    The values are those of the network without activation rounding; each grid is signed where any value was
    negative (low = -2^(bits-1) steps) and unsigned otherwise (low = 0), with the step of least squared error.
    Batch normalization uses its running statistics, or those of `images` where it has seen no batch yet.
    Nothing else changes: no statistics, no module's mode.

    Args:
        net: a quantized network, or any module that holds some (an ensemble).
        images: (batch, ...) in [0, 1]; a few hundred are enough.

    Raises:
        squint.InputError: the images are not in [0, 1], or a layer never ran; then no range is changed.
    """
    check_images(images)
    observers = {q: RangeObserver() for q in quantizers(net) if q.ranged_by_data}
    for quantizer, observer in observers.items():
        quantizer.observer = observer
    try:
        with _evaluation(net), torch.no_grad():
            net(images)
    finally:
        for quantizer in observers:
            quantizer.observer = None
    unseen = [quantizer.name for quantizer, observer in observers.items() if not observer.values().numel()]
    if unseen:
        raise InputError(f"{', '.join(unseen)} saw no value: the layer did not run on these images")
    for quantizer, observer in observers.items():
        levels = 2**quantizer.bits
        lowest = -float(levels // 2) if observer.signed else 0.0
        choose = covering_step if quantizer.covers else best_step
        quantizer.set_grid(choose(observer.values()[None], lowest, levels)[0], lowest, levels)


@contextmanager
def _evaluation(net: nn.Module) -> Iterator[None]:
    """Put `net` into evaluation mode, but let batch normalization without statistics use the batch's own."""
    modes = {module: module.training for module in net.modules()}
    fresh = [
        module
        for module in net.modules()
        if isinstance(module, _BatchNorm)
        and module.num_batches_tracked is not None
        and not bool(module.num_batches_tracked)
    ]
    net.eval()
    for module in fresh:
        # In training mode and not tracking, it normalizes by the batch and keeps nothing of it.
        module.training, module.track_running_stats = True, False
    try:
        yield
    finally:
        for module in fresh:
            module.track_running_stats = True
        for part, training in modes.items():
            part.training = training


def needs_calibration(net: nn.Module) -> bool:
    """Return whether any quantizer inside `net` has no range yet."""
    return any(not bool(quantizer.calibrated) for quantizer in quantizers(net))
