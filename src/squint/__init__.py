"""squint: stochastic quantization and information-theoretic ensembles that hold under attack."""

from squint import _waiting, attacks, data, information, models  # noqa: F401 - `_waiting` before torch
from squint._checks import InputError, InputTypeError
from squint._random import noise, seed
from squint.ensemble import Ensemble
from squint.evaluation import PlaneProfile, RobustnessReport, evaluate, information_plane
from squint.evaluation.detection import Detector
from squint.export import load, save
from squint.export.onnx import export_onnx
from squint.quantize import (
    StochasticQuantizer,
    attacker_view,
    calibrate,
    quantize,
    set_gradient,
    set_rounding,
)
from squint.training import ObjectiveConfig, TrainConfig, fit

__version__ = "0.1.0"

__all__ = [
    "Detector",
    "Ensemble",
    "InputError",
    "InputTypeError",
    "ObjectiveConfig",
    "PlaneProfile",
    "RobustnessReport",
    "StochasticQuantizer",
    "TrainConfig",
    "attacker_view",
    "attacks",
    "calibrate",
    "data",
    "evaluate",
    "export_onnx",
    "fit",
    "information",
    "information_plane",
    "load",
    "models",
    "noise",
    "quantize",
    "save",
    "seed",
    "set_gradient",
    "set_rounding",
]
