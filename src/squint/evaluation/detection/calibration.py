"""What a detector is calibrated on: the scores of clean examples, and how many of them it takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from squint import data as D
from squint._checks import InputError
from squint.attacks.pursuit import DeployedDetector
from squint.ensemble import Ensemble
from squint.evaluation.detection.fitted import FittedScore
from squint.evaluation.detection.learning import fit_score, view_of
from squint.evaluation.detection.outputs import Observed
from squint.evaluation.detection.scores import SCORES


def calibrated(
    ens: Ensemble, score: str, images: Tensor, source: D.Batch | None, observed: Observed
) -> tuple[int, FittedScore | None, Tensor]:
    """Return the number of classes, the fitted score and the scores (n,) of one deployment of each image.

    Args:
        ens: the ensemble, in evaluation mode.
        score: name of the score.
        images: clean images, on the ensemble's device.
        source: images and labels that a learned score is fitted on; None: the score is not learned.
        observed: what was seen of these images already; it gives seed and draws.
    """
    classes = int(ens.member_logits(images[:1], 1, generator=torch.Generator()).shape[-1])
    fitted = None if source is None else fit_score(ens, score, *source, classes, observed)
    probe = DeployedDetector(fitted or SCORES[score], math.inf, observed.draws)
    outputs = observed.outputs(view_of(ens, fitted), images, "calibration")
    return classes, fitted, torch.cat([probe.scores(part)[0] for part in torch.split(outputs, 100, 2)])


def minimum_examples(false_alarm_rate: float) -> int:
    """Return the least number n of calibration examples that can flag anything: 1/(n + 1) ≤ rate."""
    number = isinstance(false_alarm_rate, int | float) and not isinstance(false_alarm_rate, bool)
    if not (number and 0 < false_alarm_rate < 1):
        raise InputError(f"false_alarm_rate is {false_alarm_rate!r}; allowed: a number in (0, 1)")
    return math.ceil(1 / false_alarm_rate - 1e-9) - 1
