"""Full precision: the network as it is, trained on the mean loss of its members; where all rivals begin."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from squint.baselines.rival import OPTIONS, Rival


@dataclass(config=OPTIONS)
class FullPrecision(Rival):
    """Networks without any quantization or noise."""

    name: ClassVar[str] = "full-precision"
    own_layers: ClassVar[bool] = True
