"""Input contracts: one clear line that names the value, the place and what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

RANGE_TOLERANCE = 1e-4
"""How far outside [0, 1] a pixel may lie before the image is refused."""

LEAST_WIDTH = 2.0**-20
"""Least noise width but 0, in steps: below it noise is lost in float32 rounding, and its slope overflows."""

_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)), "\ufffd")

Number = TypeVar("Number", int, float)


class InputError(ValueError):
    """A value that a person gave is not allowed; the message is one line for that person."""


class InputTypeError(TypeError):
    """An object that a person gave is of a kind that cannot work; the message is one line."""


@runtime_checkable
class HasMemberLogits(Protocol):
    """A model whose members can be asked one by one, as `squint.Ensemble` is."""

    def member_logits(
        self, x: Tensor, draws: int = ..., *, generator: torch.Generator | None = ..., stratified: bool = ...
    ) -> Tensor:
        """Return logits of shape (draws, members, batch, classes)."""
        ...


Model = Callable[[Tensor], Tensor]
"""Anything that maps images (batch, channels, height, width) to logits (batch, classes)."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest allowed word, or an empty string."""
    if len(value) > 100:
        return ""
    match = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def shown(value: object) -> str:
    """Return a value as a message shows it: printable, in one line, its middle left out where it is long."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-40:]}"


def check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise `InputError` unless `value` is one of the allowed words."""
    words = list(allowed)
    if value not in words:
        close = nearest(value, words) if isinstance(value, str) else ""
        raise InputError(f"{name} is {shown(value)}; allowed: {', '.join(words)}{close}")


def check_number(
    name: str,
    value: Number,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    whole: bool = False,
) -> Number:
    """Return `value` unless it is not a finite number in [low, high], or (low, high] with `open_low`."""
    kind = "a whole number" if whole else "a number"
    # Numbers of numpy and fractions are numbers too.
    ok = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # A whole number of any length is finite, but longer ones than a float holds cannot be asked.
    ok = ok and (abs(value) < 2**1023 if isinstance(value, numbers.Integral) else math.isfinite(value))
    if ok and whole:
        ok = float(value).is_integer()
    if not ok or not low <= value <= high or (open_low and value == low):
        left = "(" if open_low or low == -math.inf else "["
        right = ")" if high == math.inf else "]"
        raise InputError(f"{name} is {shown(value)}; allowed: {kind} in {left}{low:g}, {high:g}{right}")
    return value


def check_width(name: str, value: Number) -> Number:
    """Return the noise width `value` in steps unless it is negative, or so small that floats lose it."""
    if 0 < check_number(name, value, 0) < LEAST_WIDTH:
        raise InputError(f"{name} is {shown(value)}; allowed: 0 (no noise), or a number from {LEAST_WIDTH:g}")
    return value


def check_bits(name: str, bits: int | None) -> None:
    """Raise `InputError` unless `bits` is a whole number from 1 to 8, or None for full precision."""
    if bits is None:
        return
    if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
        raise InputError(f"{name} is {bits!r}; allowed: a whole number of bits in 1..8, or None")


def check_images(x: Tensor, name: str = "images") -> None:
    """Raise `InputError` unless `x` is a non-empty float batch of images in [0, 1], finite.

    Args:
        x: images (batch, ...) that may leave [0, 1] by at most `RANGE_TOLERANCE`.
        name: how the message calls them.
    """
    if not isinstance(x, Tensor):
        raise InputTypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise InputError(f"{name} has dtype {x.dtype}; allowed: floating point in [0, 1]")
    if x.ndim < 2 or x.numel() == 0:
        raise InputError(f"{name} has shape {tuple(x.shape)}; allowed: a non-empty (batch, ...) tensor")
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{name} contains NaN or infinity; allowed: finite values in [0, 1]")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise InputError(f"{name} has values in [{low:g}, {high:g}]; allowed: [0, 1]")


def check_labels(y: Tensor, batch: int, num_classes: int | None = None, name: str = "labels") -> None:
    """Raise `InputError` unless `y` is (batch,) whole numbers in 0..num_classes-1."""
    if not isinstance(y, Tensor):
        raise InputTypeError(f"{name} must be a torch.Tensor, got {type(y).__name__}")
    if y.is_floating_point() or y.dtype == torch.bool or tuple(y.shape) != (batch,):
        raise InputError(
            f"{name} has shape {tuple(y.shape)} and dtype {y.dtype}; allowed: ({batch},) whole numbers"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        limit = f"0..{num_classes - 1}" if num_classes is not None else "0 and above"
        raise InputError(f"{name} has values in [{low}, {high}]; allowed: {limit}")


def check_logits(logits: Tensor, batch: int) -> None:
    """Raise `InputError` unless a model's output is (batch, classes) with at least two classes."""
    if not isinstance(logits, Tensor):
        raise InputTypeError(f"the model returned {type(logits).__name__}; needed: a (batch, classes) tensor")
    if logits.ndim != 2 or logits.shape[0] != batch or logits.shape[1] < 2:
        raise InputError(
            f"the model returned shape {tuple(logits.shape)}; "
            f"needed: ({batch}, classes) with 2 classes or more"
        )


def need_members(model: object, who: str) -> HasMemberLogits:
    """Return `model` typed as having members, or raise `InputTypeError` that says who needs them."""
    if not isinstance(model, HasMemberLogits):
        raise InputTypeError(
            f"{who} needs a model with member_logits(x, draws) -> (draws, members, batch, classes), "
            f"such as squint.Ensemble; got {type(model).__name__}"
        )
    return model


def parse_fraction(name: str, text: str | float, *, low: float = 0.0, high: float = 1.0) -> float:
    """Return the number written as `5/255`, `0.02` or already a number, checked to lie in [low, high]."""
    if isinstance(text, str):
        try:
            # Fractions have no exponents; as a fraction, 1e999999999 would be a billion digits.
            value = float(Fraction(text.replace(" ", ""))) if "/" in text else float(text)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise InputError(
                f"{name} is {shown(text)}; allowed: a fraction such as 5/255 or a number "
                f"in [{low:g}, {high:g}]"
            ) from None
    else:
        value = text
    return check_number(name, value, low, high)


def format_fraction(value: float) -> str:
    """Return `value` as people write radii: `5/255` for multiples of 1/255, decimals otherwise."""
    scaled = value * 255
    if abs(scaled - round(scaled)) < 1e-6:
        return f"{round(scaled)}/255"
    halves = scaled * 2
    if abs(halves - round(halves)) < 1e-6:
        return f"{round(halves)}/510"
    return f"{value:.6g}"


def describe(error: Any) -> str:
    """Return an error's first line, for a person; the first 300 characters of it."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]} ..."


def printable(text: str) -> str:
    """Return text whose characters that would steer a terminal or break an SVG are replaced."""
    return text.translate(_CONTROLS)
