"""Quantization: pure math, the quantizer, quantized layers and conversion of any module."""

from squint.quantize.calibration import calibrate, cover_readers, needs_calibration
from squint.quantize.convert import QuantizedNetwork, quantize
from squint.quantize.modes import quantizers, set_gradient, set_rounding
from squint.quantize.quantizer import StochasticQuantizer
from squint.quantize.settings import LayerSettings
from squint.quantize.view import AttackerView, attacker_view

__all__ = [
    "AttackerView",
    "LayerSettings",
    "QuantizedNetwork",
    "StochasticQuantizer",
    "attacker_view",
    "calibrate",
    "cover_readers",
    "needs_calibration",
    "quantize",
    "quantizers",
    "set_gradient",
    "set_rounding",
]
