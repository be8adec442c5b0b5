"""The control of the active tests: noise that defends nothing."""

from __future__ import annotations

import copy

from torch import nn

from squint.ensemble import Ensemble
from squint.evaluation.machine import device_of
from squint.quantize import StochasticQuantizer


def noisy_control(undefended: nn.Module, draws: int = 4) -> Ensemble:
    """Return a copy of the network behind an 8-bit stochastic input quantizer: noise that defends nothing."""
    quantizer = StochasticQuantizer(8)
    network = nn.Sequential(quantizer, copy.deepcopy(undefended))
    return Ensemble([network], draws=draws).to(device_of(undefended)).eval()
