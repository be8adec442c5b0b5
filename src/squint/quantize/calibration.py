"""`calibrate(net, images)`: ranges and signedness of activations from the values that images produce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from squint._checks import InputError, check_images
from squint._random import noise
from squint.quantize.layers import QuantizedLayer
from squint.quantize.modes import quantizers
from squint.quantize.observer import RangeObserver, best_step, covering_step
from squint.quantize.quantizer import StochasticQuantizer, check_step

_PRODUCTS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase)


def calibrate(net: nn.Module, images: Tensor, *, missing: bool = False) -> None:
    """Set the ranges of every activation quantizer inside `net` from the values that `images` produce.

    The values are those of the network without activation rounding; each grid is signed where any value was
    negative (low = -2^(bits-1) steps) and unsigned otherwise (low = 0), with the step of least squared error.
    Batch normalization uses its running statistics, or those of `images` where it has seen no batch yet.
    Layers that read the images are covered, see `cover_readers`. Nothing else changes: no statistics, no
    module's mode.

    Args:
        net: a quantized network, or any module that holds some (an ensemble).
        images: (batch, ...) in [0, 1]; a few hundred are enough.
        missing: leave the ranges alone that quantizers have already.

    Raises:
        squint.InputError: the images are not in [0, 1], a layer never ran, or its values are not finite; then
            no range is changed.
    """
    check_images(images)
    cover_readers(net, images)
    with _observed(net) as observers, _evaluation(net), torch.no_grad():
        net(images)
    wanted = {q: seen for q, seen in observers.items() if not (missing and bool(q.calibrated))}
    unseen = [quantizer.name for quantizer, observer in wanted.items() if not observer.seen]
    if unseen:
        raise InputError(f"{', '.join(unseen)} saw no value: the layer did not run on these images")
    grids = []
    for quantizer, observer in wanted.items():
        levels = 2**quantizer.bits
        lowest = -float(levels // 2) if observer.signed else 0.0
        choose, values = (
            (covering_step, observer.ends()) if quantizer.covers else (best_step, observer.values())
        )
        step = choose(values[None], lowest, levels)[0]
        check_step(step, quantizer.name)
        grids.append((quantizer, step, lowest, levels))
    for quantizer, step, lowest, levels in grids:
        quantizer.set_grid(step, lowest, levels)


def cover_readers(net: nn.Module, images: Tensor) -> None:
    """Fix the ranges of layers that read the images, and have `calibrate` let them hold every value seen.

    A range that clips a coarsely quantized image, by data or by training, has no gradient at all there, which
    masks the whole network. A layer reads the images where they reach it through no other weights; scales and
    shifts of channels, as of a normalization, do not count. `quantize` knows the first layer that a network
    names, which need not be the first one that runs.

    Args:
        net: a quantized network, or any module that holds some.
        images: (batch, ...) in [0, 1], of which two are looked at.
    """
    layers = [module for module in net.modules() if isinstance(module, QuantizedLayer)]
    if not layers:
        return
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    products = {
        id(p) for module in net.modules() if isinstance(module, _PRODUCTS) for p in module.parameters(False)
    }
    weights = [
        p
        for p in net.parameters()
        # Scales of channels may be shaped to broadcast: (1, channels, 1, 1).
        if p.is_floating_point()
        and id(p) not in own
        and (p.ndim > 1 if id(p) in products else sum(size > 1 for size in p.shape) > 1)
    ]
    looked = images[:2].detach().clone()
    readers = _reached(net, layers, looked, [looked]) - _reached(net, layers, looked, weights)
    for quantizer in readers:
        quantizer.covers = True
        if isinstance(quantizer.step, nn.Parameter):
            quantizer.step.requires_grad_(False)


def _reached(
    net: nn.Module, layers: Sequence[QuantizedLayer], images: Tensor, sources: Sequence[Tensor]
) -> set[StochasticQuantizer]:
    """Return the quantizers of layers whose input depends on a source through no other quantized layer."""
    found: set[StochasticQuantizer] = set()

    def look(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(layer, QuantizedLayer)
        depends = any(isinstance(x, Tensor) and x.requires_grad for x in (*inputs, *named.values()))
        if depends and layer.activation_quantizer is not None:
            found.add(layer.activation_quantizer)

    def cut(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.detach()

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(cut) for layer in layers]
    asked = {id(tensor): tensor.requires_grad for tensor in (*net.parameters(), *sources)}
    try:
        for tensor in (*net.parameters(), *sources):
            tensor.requires_grad_(False)
        for tensor in sources:
            tensor.requires_grad_()
        # No one else's noise is used up.
        with _observed(net), _evaluation(net), torch.enable_grad(), noise(torch.Generator().manual_seed(0)):
            net(images)
    finally:
        for handle in handles:
            handle.remove()
        for tensor in (*net.parameters(), *sources):
            tensor.requires_grad_(asked[id(tensor)])
    return found


@contextmanager
def _observed(net: nn.Module) -> Iterator[dict[StochasticQuantizer, RangeObserver]]:
    """Let every quantizer whose range data sets pass its values on unrounded, and remember them."""
    observers = {q: RangeObserver() for q in quantizers(net) if q.ranged_by_data}
    for quantizer, observer in observers.items():
        quantizer.observer = observer
    try:
        yield observers
    finally:
        for quantizer in observers:
            quantizer.observer = None


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
