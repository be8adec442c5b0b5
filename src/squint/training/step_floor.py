"""A floor under the learned steps of weights, without which channels lose all their weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from squint.quantize.layers import QuantizedLayer
from squint.quantize.modes import parts_of
from squint.quantize.quantizer import StochasticQuantizer


class StepFloor:
    """Keeps the largest level of every weight grid at `ratio` mean magnitudes of its weights, or above.

    LSQ's gradient scale (Esser et al. 2020) is made for SGD. An optimizer that divides gradients by their
    size moves a step by the learning rate however small it is, and a step that falls below zero leaves its
    channel without weights and without a way back. Two levels, at plus and minus a scale, have theirs at one
    mean magnitude at most, where they err least (Rastegari et al. 2016, equation 6).

    Args:
        module: the network; quantizers of weights whose steps are not learned are left alone.
        ratio: mean magnitudes of the weights that share a step; 0 for no floor.
    """

    def __init__(self, module: nn.Module, ratio: float) -> None:
        self._held: list[tuple[QuantizedLayer, StochasticQuantizer, tuple[int, ...], float]] = []
        for layer in parts_of(module) if ratio > 0 else ():
            quantizer = layer.weight_quantizer if isinstance(layer, QuantizedLayer) else None
            if quantizer is None or not quantizer.step.requires_grad:
                continue
            lowest = float(quantizer.offset)
            reach = max(abs(lowest), abs(lowest + quantizer.levels - 1))
            shared = tuple(axis for axis, size in enumerate(quantizer.step.shape) if size == 1)
            at = min(ratio, 1.0) if quantizer.levels == 2 else ratio
            self._held.append((cast(QuantizedLayer, layer), quantizer, shared, at / reach))

    @torch.no_grad()
    def hold(self) -> None:
        """Raise the steps that are below their floors."""
        for layer, quantizer, shared, factor in self._held:
            magnitudes = cast(Tensor, layer.weight).abs()
            mean = magnitudes.mean(shared, keepdim=True) if shared else magnitudes.mean()
            step = quantizer.step
            step.copy_(torch.maximum(step, factor * mean.to(step.dtype)))
