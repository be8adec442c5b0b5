"""Detection: scores of disagreement, a conformal detector, and its evaluation under attacks on itself."""

from squint.evaluation.detection.detector import Detector, Verdict
from squint.evaluation.detection.evaluation import ADAPTIVE, detect
from squint.evaluation.detection.fitted import COMBINATION, FITTED
from squint.evaluation.detection.records import AttackFigures, DetectionRecord, DetectionReport
from squint.evaluation.detection.sanity import PUBLISHED, Published, too_good
from squint.evaluation.detection.scores import SCORES
from squint.evaluation.detection.separation import Separation, separation

SCORE_NAMES = (*SCORES, *FITTED, COMBINATION)
"""Every score that `Detector.fit` and `detect` take."""

__all__ = [
    "ADAPTIVE",
    "PUBLISHED",
    "SCORES",
    "SCORE_NAMES",
    "AttackFigures",
    "DetectionRecord",
    "DetectionReport",
    "Detector",
    "Published",
    "Separation",
    "Verdict",
    "detect",
    "separation",
    "too_good",
]
