"""The stochastic quantizer as a module: a grid, a noise, a rounding mode and a surrogate gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint._checks import InputError, check_choice, check_number, check_width
from squint._random import current_source, random_integers
from squint.quantize.autograd import LowerBound, Rounding, StochasticRound, noise_values
from squint.quantize.functional import GRADIENTS, NOISES, inside
from squint.quantize.gradient_view import GradientView, current_view
from squint.quantize.observer import RangeObserver

GRANULARITIES = ("element", "channel", "example", "tensor")
ROUNDINGS = ("sample", "nearest")
WIDTH_FLOOR = 0.25
"""Least learnable noise width, in steps: without a floor training drives the noise to zero."""
_STEP_FLOOR = 1e-8


class StochasticQuantizer(nn.Module):
    """Quantizes to L = 2^bits levels low + k * step with random thresholds.

    y = low + step * sum_j 1[x + w n > t_j] with w = step * width and thresholds t_j halfway between levels.
    `width = 0` is ordinary quantization to fixed bins; uniform noise of width 1 is stochastic rounding:
    E[y] = x on [low, high]. Arithmetic runs in float32 (float64 for float64), then casts back.

    Whether noise is drawn is said by `rounding` ("sample" or "nearest"), never by `train()` or `eval()`.
    Noise comes from the innermost `squint.noise(generator)` context, or else from squint's own stream. The
    grid is kept in float32 where the module around it goes to half precision. Step and width are written with
    `set_grid`, `set_range` or in place under `torch.no_grad`: what is written through `.data` is not seen.

    Args:
        bits: 1 to 8.
        low: lowest level q_0.
        high: highest level q_{L-1}, above `low`.
        noise: "uniform", "logistic" (Relaxed Quantization, Louizos et al. 2019) or "gaussian", each scaled to
            variance 1/12, so that `width` means the same for all.
        width: noise width in steps, 0 or more.
        granularity: what shares one draw: "element", "channel" (N, C, 1, ...), "example" (N, 1, ...) or
            "tensor" (one value per draw).
        gradient: "expected" (the derivative of E[y]), "straight_through" (1 on the closed range, 0 outside)
            or "identity" (1 everywhere).
        learn_range: make the step a parameter; the grid scales about zero, so that a grid that holds zero
            keeps it. Under "straight_through" with LSQ's gradient scale (Esser et al. 2020).
        learn_width: make the width a parameter, not below `WIDTH_FLOOR`.

    Raises:
        squint.InputError: a setting is not allowed.
    """

    step: Tensor
    width: Tensor
    offset: Tensor
    level_count: Tensor
    calibrated: Tensor

    def __init__(
        self,
        bits: int,
        low: float = 0.0,
        high: float = 1.0,
        *,
        noise: str = "uniform",
        width: float = 1.0,
        granularity: str = "element",
        gradient: str = "expected",
        learn_range: bool = False,
        learn_width: bool = False,
    ) -> None:
        super().__init__()
        check_number("bits", bits, 1, 8, whole=True)
        check_number("low", low)
        check_number("high", high, low, open_low=True)
        check_choice("noise", noise, NOISES)
        check_width("width", width)
        check_choice("granularity", granularity, GRANULARITIES)
        check_choice("gradient", gradient, GRADIENTS)
        if learn_width and width < WIDTH_FLOOR:
            raise InputError(f"width is {width!r}; a learnable width starts at {WIDTH_FLOOR} or above")
        self.bits = bits
        self.noise = noise
        self.granularity = granularity
        self.gradient = gradient
        self.rounding = "sample"
        self.name = "quantizer"
        self.lsq_scale = False
        self.ranged_by_data = False
        self.covers = False
        self.batch_axis = 0
        self.observer: RangeObserver | None = None
        self._numbers: dict[str, tuple[Tensor, int, float]] = {}
        self._hold("step", torch.tensor(1.0), learn_range)
        self._hold("width", torch.tensor(float(width)), learn_width)
        self.register_buffer("offset", torch.tensor(0.0))
        self.register_buffer("level_count", torch.tensor(2**bits))
        self.register_buffer("calibrated", torch.tensor(True))
        self.set_range(low, high)

    def _hold(self, name: str, value: Tensor, learn: bool) -> None:
        if learn:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _number(self, name: str) -> float:
        """Return a small tensor's value, read from its device only after someone wrote to it."""
        # Asked for in every pass: torch looks an attribute of a module up in four places.
        tensor = self._buffers.get(name)
        tensor = cast(Tensor, self._parameters[name]) if tensor is None else tensor
        if tensor.is_inference():  # such tensors count no writes
            return float(tensor)
        known = self._numbers.get(name)
        if known is None or known[0] is not tensor or known[1] != tensor._version:
            known = self._numbers[name] = (tensor, tensor._version, float(tensor))
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_numbers": {}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StochasticQuantizer:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrow = moved.is_floating_point() and moved.dtype.itemsize < 4
            return tensor.to(moved.device, torch.float32) if narrow else moved

        return cast(StochasticQuantizer, super()._apply(keep, recurse))  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}step")
        if saved is not None and saved.shape != self.step.shape:
            self._resize_step(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _resize_step(self, shape: torch.Size) -> None:
        self._hold("step", self.step.new_ones(shape), isinstance(self.step, nn.Parameter))

    def set_range(self, low: float, high: float) -> None:
        """Set the lowest and highest level, for 2^bits levels."""
        levels = 2**self.bits
        step = (high - low) / (levels - 1)
        self.set_grid(torch.tensor(step), low / step, levels)

    def set_grid(self, step: Tensor, offset: float, levels: int) -> None:
        """Set the levels to step * (offset + k), k = 0 .. levels - 1, and count as calibrated.

        Args:
            step: distance of the levels, a scalar or one value per channel, shaped to broadcast.
            offset: position of the lowest level in steps; a whole number (or -1/2) makes a signed grid.
            levels: number of levels L, 2 or more.

        Raises:
            squint.InputError: a step is not above 0 and finite.
        """
        value = step.detach()
        check_step(value, self.name)
        with torch.no_grad():
            if self.step.shape != value.shape:
                self._resize_step(value.shape)
            self.step.copy_(value)
            self.offset.fill_(offset)
            self.level_count.fill_(levels)
            self.calibrated.fill_(True)

    @property
    def levels(self) -> int:
        """The number of levels L: 2^bits, or one less for signed weights."""
        return int(self._number("level_count"))

    @property
    def low(self) -> Tensor:
        """The lowest level q_0."""
        return self.offset * self.step.detach()

    @property
    def high(self) -> Tensor:
        """The highest level q_{L-1}."""
        return (self.offset + (self.levels - 1)) * self.step.detach()

    @property
    def stochastic(self) -> bool:
        """Whether the forward pass draws noise in its present mode."""
        return self.rounding == "sample" and self._fixed_width() != 0

    def _fixed_width(self) -> float | None:
        """Return the width as a number, or None where it is learned: then it is above its floor."""
        return None if "width" in self._parameters else self._number("width")

    def extra_repr(self) -> str:
        """Return the settings that `print(net)` shows."""
        width = float(self.width.detach())
        return (
            f"bits={self.bits}, levels={self.levels}, noise={self.noise}, width={width:.3g}, "
            f"granularity={self.granularity}, gradient={self.gradient}, rounding={self.rounding}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded to the grid, same shape and dtype.

        Args:
            x: values of any shape; the first dimension is the batch, the second the channels (turned round
                where `batch_axis` is 1).

        Raises:
            squint.InputError: no range was ever set (see `squint.calibrate`).
        """
        if self.observer is not None:
            self.observer.observe(x)
            return x
        if not x.is_floating_point():
            raise InputError(f"{self.name} got values of dtype {x.dtype}; allowed: floating point")
        if not self._number("calibrated"):
            raise InputError(f"{self.name} has no range yet: call squint.calibrate(net, images) first")
        view = current_view(self) or GradientView(self.gradient)
        low, step, width = self._grid(x)
        k = self._draw(x) if self.stochastic else None
        if view.gradient == "additive":
            values = x if x.dtype == torch.float64 else x.float()
            return self._additive(values, low, step, width, k).to(x.dtype)
        if k is not None and k.shape == x.shape:
            x = x.contiguous()  # as the noise is, so that both go through memory in one order
        rounding = Rounding(
            self.levels,
            self.noise,
            view.gradient,
            self._fixed_width(),
            view.width_factor,
            self._number("offset") == 0,
        )
        y: Tensor = StochasticRound.apply(x, low, step, width, k, rounding)  # type: ignore[no-untyped-call]
        return y

    def _grid(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return low, step and width as the forward pass uses them: bounded, their gradients scaled."""
        step, width = self.step, self.width
        if "step" in self._parameters:
            scaled = self.lsq_scale or self.gradient == "straight_through"
            scale = self._lsq_gradient_scale(values) if scaled else 1.0
            step = cast(Tensor, LowerBound.apply(step, _STEP_FLOOR, scale))  # type: ignore[no-untyped-call]
        if "width" in self._parameters:
            scale = self._lsq_gradient_scale(values) if self.lsq_scale else 1.0
            width = cast(Tensor, LowerBound.apply(width, WIDTH_FLOOR, scale))  # type: ignore[no-untyped-call]
        # A grid from zero keeps its zero whatever the step: no gradient passes through `low`.
        low = self.offset if self._number("offset") == 0 else self.offset * step
        return low, step, width

    def _lsq_gradient_scale(self, values: Tensor) -> float:
        """Return LSQ's 1/sqrt(N Q_P): N elements of one example that share a step, Q_P the largest level."""
        batch = values.shape[self.batch_axis] if values.ndim > self.batch_axis else 1
        sharing = values.numel() / max(batch, 1) / self.step.numel()
        largest = max(self.levels - 1 + self._number("offset"), 1.0)
        return 1 / math.sqrt(max(sharing, 1.0) * largest)

    def _draw(self, values: Tensor) -> Tensor:
        """Return integer noise that broadcasts against `values`, one value per `granularity`."""
        if self.batch_axis == 1:
            return self._draw_for(values.transpose(0, 1)).transpose(0, 1).contiguous()
        return self._draw_for(values)

    def _draw_for(self, values: Tensor) -> Tensor:
        shape, draws = values.shape, len(current_source().streams)
        if draws > 1 and (not shape or shape[0] % draws):
            raise InputError(
                f"{self.name} got shape {tuple(shape)}, which does not hold {draws} folded draws"
            )
        if not shape or self.granularity == "element":
            return random_integers(shape, values.device)
        kept = {"channel": shape[:2], "example": shape[:1], "tensor": (draws,)}[self.granularity]
        k = random_integers((*kept, *(1,) * (values.ndim - len(kept))), values.device)
        return k.repeat_interleave(shape[0] // draws, 0) if self.granularity == "tensor" else k

    def _additive(self, values: Tensor, low: Tensor, step: Tensor, width: Tensor, k: Tensor | None) -> Tensor:
        """Return the additive-noise twin: x + w n on the range, its bounds outside; slope 1 or 0."""
        mask = inside((values - low) / step, self.levels)
        bounded = torch.minimum(torch.maximum(values, low), low + (self.levels - 1) * step)
        clipped = torch.where(mask, values, bounded)
        if k is None:
            return clipped
        return clipped + noise_values(k, self.noise, self.levels, values.dtype) * (width * step)


def check_step(step: Tensor, name: str) -> None:
    """Raise `InputError` where the step of the quantizer that is called `name` is not above 0 and finite."""
    if not bool(((step > 0) & step.isfinite()).all()):
        raise InputError(f"step is {float(step.min()):g} in {name}; allowed: finite, above 0")
