"""ONNX: one integer graph for a whole ensemble, checked against it before it is written.

Needs the extra `squint-nn[onnx]`, which is imported where it is first used.
"""

from squint.export.onnx.runtime import OnnxModel, Prediction, predict, read_images
from squint.export.onnx.shipped import ShippedRobustness, attack_shipped, export_run
from squint.export.onnx.write import ExportReport, export_onnx

__all__ = [
    "ExportReport",
    "OnnxModel",
    "Prediction",
    "ShippedRobustness",
    "attack_shipped",
    "export_onnx",
    "export_run",
    "predict",
    "read_images",
]
