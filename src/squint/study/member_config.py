"""How one member of a study's system is quantized."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from squint._checks import check_bits


@dataclass(config=ConfigDict(extra="forbid", frozen=True))
class MemberConfig:
    """How one member is quantized; bits None keep full precision."""

    weight_bits: int | None = None
    """1..8: of the weights of all layers but the first and the last."""
    activation_bits: int | None = None
    """1..8: of the inputs of all layers but the first and the last."""
    first_last_bits: int | None = None
    """1..8: of weights and inputs of the first and the last layer."""
    input_bits: int | None = None
    """1..8: of the image."""
    noise: Literal["uniform", "logistic", "gaussian"] = "uniform"
    """Family of the quantizers' noise."""
    input_width: float = Field(default=1.0, ge=0)
    """Noise width of the image's quantizer, in steps; 0 for none."""
    activation_width: float = Field(default=0.0, ge=0)
    """Noise width of the activations' quantizers, in steps; 0 for none."""
    granularity: Literal["element", "channel", "example", "tensor"] = "element"
    """What shares one draw of the noise."""
    input_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest level of the image's quantizer; pixels beyond them would be clipped."""

    @field_validator("weight_bits", "activation_bits", "first_last_bits", "input_bits")
    @classmethod
    def _bits(cls, value: int | None) -> int | None:
        check_bits("bits", value)
        return value

    @field_validator("input_range")
    @classmethod
    def _input_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        # A range that clips pixels takes their gradient away and looks like robustness.
        if not value[0] <= 0 < 1 <= value[1]:
            raise ValueError(f"input_range is {list(value)}; allowed: two numbers with [0, 1] between them")
        return value

    @property
    def quantized(self) -> bool:
        """Whether anything is quantized at all."""
        bits = (self.weight_bits, self.activation_bits, self.first_last_bits, self.input_bits)
        return any(value is not None for value in bits)
