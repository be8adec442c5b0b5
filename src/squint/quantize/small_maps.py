"""Convolutions over maps of a few pixels as matrix products, on the CPU.

oneDNN's kernels go along the width of a map. On maps of 4x4 pixels its bfloat16 gradient for the weight takes
two to nine times as long as gathering all patches and multiplying once, and on 2x2 everything does. Where
every pixel of such a map sees every other, the kernel's taps are one dense matrix between the two maps: there
is nothing to gather, and nothing of the padding is multiplied (on 2x2, five of nine taps; on 1x1, eight).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

_SMALL = 16
"""Most pixels of an output for which the weight's gradient is a product of patches."""
_TINY = 4
"""Most pixels for which all of it is."""
_MANY = 256
"""Fewest images for which the dense matrix is made: it costs as much for one."""
_CHANNELS = 64
"""Fewest channels on both sides: below, gathering costs more than it saves."""


def applies(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> bool:
    """Return whether `convolve` stands in for the layer's convolution of x, and gains by it.

    Only where a gradient will be asked for: what runs without one, or is traced, keeps torch's own operator.
    """
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    if (
        x.device.type != "cpu"
        or not torch.is_grad_enabled()
        or not (x.requires_grad or weight.requires_grad)
        or layer.bias is not None
        or layer.groups != 1
        or layer.padding_mode != "zeros"
        or isinstance(padding, str)
        or min(layer.in_channels, layer.out_channels) < _CHANNELS
        or x.ndim != 4
        or x.shape[2] != x.shape[3]
        or any(len(set(values)) > 1 for values in (layer.kernel_size, layer.stride, layer.padding))
        or set(layer.dilation) != {1}
    ):
        return False
    pixels = ((x.shape[2] + 2 * padding - kernel) // stride + 1) ** 2
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and pixels <= _SMALL
    return x.dtype == weight.dtype == torch.float32 and pixels <= _TINY


def convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return the convolution of (batch, channels, side, side), as torch's; in bfloat16 under autocast."""
    if torch.is_autocast_enabled("cpu"):
        x, weight = x.bfloat16(), weight.bfloat16()
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _Convolution.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
    return y


class _Convolution(torch.autograd.Function):
    """torch's convolution, with products of patches where they are faster; double backward included."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        side = (x.shape[2] + 2 * padding - weight.shape[2]) // stride + 1
        if _sees_all(x, weight, stride, padding):
            return _maps(F.linear(_rows(x), _dense(weight, side)), side)
        ctx.tiny = side * side <= _TINY
        if not ctx.tiny:
            return F.conv2d(x, weight, None, stride, padding)
        return _product(x, weight, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        by_x = by_weight = None
        if _sees_all(x, weight, stride, padding):
            rows, side = _rows(grad), x.shape[2]
            if ctx.needs_input_grad[0]:
                by_x = _maps(rows @ _dense(weight, side), side)
            if ctx.needs_input_grad[1]:
                by_weight = _gathered(rows.t() @ _rows(x), weight, side)
            return by_x, by_weight, None, None
        if ctx.needs_input_grad[0]:
            kernel = weight.shape[2]
            if ctx.tiny and stride == 1 and 2 * padding == kernel - 1:
                # The transpose of such a convolution is the one with the weight turned about.
                by_x = _product(grad, weight.flip(2, 3).transpose(0, 1), 1, padding)
            else:
                by_x = conv2d_input(  # type: ignore[no-untyped-call]
                    x.shape, weight, grad, stride, padding
                )
        if ctx.needs_input_grad[1]:
            patches = _patches(x, weight.shape[2], stride, padding).flatten(0, 2)
            out, channels, kernel, _ = weight.shape
            rows = grad.permute(0, 2, 3, 1).reshape(-1, out)
            by_weight = (rows.t() @ patches).view(out, kernel, kernel, channels).permute(0, 3, 1, 2)
        return by_x, by_weight, None, None


def _sees_all(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Return whether many maps keep their size and every pixel of the output sees every one of the input."""
    same = stride == 1 and 2 * padding == weight.shape[2] - 1
    return same and x.shape[2] <= padding + 1 and len(x) >= _MANY


def _rows(x: Tensor) -> Tensor:
    """Return each image's map as one row, channels last."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _maps(rows: Tensor, side: int) -> Tensor:
    """Return rows as maps (batch, channels, side, side)."""
    return rows.view(len(rows), side, side, -1).permute(0, 3, 1, 2)


def _taps(weight: Tensor, side: int) -> list[tuple[slice, slice]]:
    """Return, for every pixel of the output in its order, the kernel's taps that lie on the input."""
    starts = [weight.shape[2] // 2 - at for at in range(side)]
    slices = [slice(start, start + side) for start in starts]
    return [(down, across) for down in slices for across in slices]


def _dense(weight: Tensor, side: int) -> Tensor:
    """Return the matrix that takes a row of `_rows` to the output's: (pixels * out, pixels * in)."""
    last = weight.permute(0, 2, 3, 1)
    return torch.cat([last[:, down, across].flatten(1) for down, across in _taps(weight, side)])


def _gathered(matrix: Tensor, weight: Tensor, side: int) -> Tensor:
    """Return the weight's gradient from that of its dense matrix; sums in float32 at least."""
    out, channels, kernel, _ = weight.shape
    kind = torch.promote_types(matrix.dtype, torch.float32)
    total = matrix.new_zeros(out, kernel, kernel, channels, dtype=kind)
    blocks = matrix.view(side * side, out, side, side, channels)
    for block, (down, across) in zip(blocks, _taps(weight, side), strict=True):
        total[:, down, across] += block
    return total.to(matrix.dtype).permute(0, 3, 1, 2)


def _product(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return the convolution as patches times weight, channels last."""
    patches = _patches(x, weight.shape[2], stride, padding)
    return (patches @ weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])).permute(0, 3, 1, 2)


def _patches(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return all patches: (batch, rows, columns, kernel * kernel * channels)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)
