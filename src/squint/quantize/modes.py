"""Finding the quantizers of a module, and setting how all of them round and differentiate."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from squint._checks import check_choice
from squint.quantize.functional import GRADIENTS
from squint.quantize.quantizer import ROUNDINGS, StochasticQuantizer


def parts_of(module: nn.Module) -> list[nn.Module]:
    """Return the modules that `module.modules()` yields, which makes names of all of them, in less time."""
    found: dict[nn.Module, None] = {}
    left = [module]
    while left:
        part = left.pop()
        if part not in found:
            found[part] = None
            left.extend(child for child in reversed(part._modules.values()) if child is not None)
    return list(found)


def quantizers(module: nn.Module) -> Iterator[StochasticQuantizer]:
    """Yield every quantizer inside `module` once."""
    for child in parts_of(module):
        if isinstance(child, StochasticQuantizer):
            yield child


def set_rounding(net: nn.Module, rounding: str) -> None:
    """Set how every quantizer inside `net` rounds, whatever `train()` or `eval()` say.

    Args:
        net: any module.
        rounding: "sample" draws noise; "nearest" sets it to zero and leaves the backward pass as it is.
    """
    check_choice("rounding", rounding, ROUNDINGS)
    for quantizer in quantizers(net):
        quantizer.rounding = rounding


def set_gradient(net: nn.Module, gradient: str) -> None:
    """Set the surrogate gradient of every quantizer inside `net`.

    Args:
        net: any module.
        gradient: "expected", "straight_through" or "identity".
    """
    check_choice("gradient", gradient, GRADIENTS)
    for quantizer in quantizers(net):
        quantizer.gradient = gradient
