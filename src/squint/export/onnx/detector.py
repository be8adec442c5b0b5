"""The detector of an exported graph: its own score, calibrated on what the runtime computes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from squint.export.onnx.runtime import OnnxModel

SCORE = "predictive_information"
"""The one score that a graph gives as its second output, `score`."""


@dataclass(frozen=True)
class ShippedDetector:
    """A threshold on a graph's score, as its model card holds it.

    For an example exchangeable with the calibration images, a flag comes up with a probability of at most
    the false-alarm rate (split conformal; Vovk et al. 2005), over the draw of both and the runtime's noise.
    It says nothing about attacks.

    Attributes:
        score: name of the score: the information between prediction, and member and draw, in nats.
        threshold: images with a score above it are flagged.
        false_alarm_rate: the stated rate.
        calibration: number of clean images that set the threshold.
        measured: share of the gate's images that it flags, attacked by nobody; None without such images.
    """

    score: str
    threshold: float
    false_alarm_rate: float
    calibration: int
    measured: float | None = None


def calibrate_detector(
    content: bytes, clean: Tensor, false_alarm_rate: float, images: Tensor | None
) -> ShippedDetector:
    """Return the detector of a graph whose second output is the score, from one prediction of each image.

    Calibrated on the runtime and not on the ensemble: the graph's 8-bit codes move the scores a little.

    Args:
        content: the graph.
        clean: (n, ...) images that training has not seen; n + 1 at least 1 / `false_alarm_rate`.
        false_alarm_rate: in (0, 1).
        images: (m, ...) images to measure the rate on, or None.
    """
    model = OnnxModel(content)
    scores = np.sort(_scores(model, clean))
    rank = math.floor(false_alarm_rate * (len(scores) + 1) + 1e-9)
    threshold = float(scores[-rank])
    measured = None if images is None else float((_scores(model, images) > threshold).mean())
    return ShippedDetector(SCORE, threshold, false_alarm_rate, len(scores), measured)


def _scores(model: OnnxModel, images: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    parts = [model.run(part)[1] for part in torch.split(images, 128)]
    return np.concatenate(parts).astype(np.float64)
