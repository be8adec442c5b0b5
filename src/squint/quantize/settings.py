"""How each layer is quantized: its settings, and overrides by name pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from squint._checks import InputError, check_bits, check_choice, check_width, nearest
from squint.quantize.functional import NOISES
from squint.quantize.quantizer import GRANULARITIES


@dataclass(frozen=True)
class LayerSettings:
    """How one layer is quantized; the keys that `overrides` may set.

    Attributes:
        weight_bits: 1 to 8, or None for full precision.
        activation_bits: bits of the layer's input, likewise.
        noise: "uniform", "logistic" or "gaussian".
        activation_width: noise width of the input's quantizer, in steps.
        weight_width: noise width of the weight's quantizer, in steps; 0 keeps the weight still.
        granularity: what shares a draw of the input's noise: "element", "channel", "example" or "tensor".
        learn_range: make the steps parameters.
        learn_width: make the input's noise width a parameter, where there is noise.
    """

    weight_bits: int | None = 4
    activation_bits: int | None = 4
    noise: str = "uniform"
    activation_width: float = 1.0
    weight_width: float = 0.0
    granularity: str = "element"
    learn_range: bool = True
    learn_width: bool = False

    def __post_init__(self) -> None:
        check_bits("weight_bits", self.weight_bits)
        check_bits("activation_bits", self.activation_bits)
        check_choice("noise", self.noise, NOISES)
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_width("activation_width", self.activation_width)
        check_width("weight_width", self.weight_width)


def apply_overrides(
    settings: Mapping[str, LayerSettings], overrides: Mapping[str, Mapping[str, Any]]
) -> dict[str, LayerSettings]:
    """Return the settings of each layer after every override, in order.

    Args:
        settings: layer name to settings.
        overrides: layer name pattern (shell style) to the fields that change.

    Raises:
        squint.InputError: a pattern matches no layer, or a field or its value is not allowed.
    """
    changed = dict(settings)
    allowed = {field.name for field in fields(LayerSettings)}
    for pattern, values in overrides.items():
        names = [name for name in changed if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise InputError(
                f"overrides names {pattern!r}, which matches none of the {len(changed)} layers"
                f"{nearest(pattern, changed)}"
            )
        if not isinstance(values, Mapping):
            raise InputError(
                f"overrides[{pattern!r}] is {values!r}; allowed: names of settings and their values"
            )
        for key in values:
            check_choice(f"overrides[{pattern!r}]", key, allowed)
        for name in names:
            changed[name] = replace(changed[name], **values)
    return changed
