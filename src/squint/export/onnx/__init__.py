"""ONNX: one integer graph for a whole ensemble, checked against it before it is written.

Needs the extra `squint-nn[onnx]`, which is imported where it is first used.
"""

from squint.export.onnx.detector import ShippedDetector
from squint.export.onnx.prepared import Prepared, prepare
from squint.export.onnx.runtime import OnnxModel, Prediction, predict, read_images
from squint.export.onnx.shipped import ShippedRobustness, attack_shipped
from squint.export.onnx.write import ExportReport, export_onnx

__all__ = [
    "ExportReport",
    "OnnxModel",
    "Prediction",
    "Prepared",
    "ShippedDetector",
    "ShippedRobustness",
    "attack_shipped",
    "export_onnx",
    "predict",
    "prepare",
    "read_images",
]
