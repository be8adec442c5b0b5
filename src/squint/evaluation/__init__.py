"""Evaluation: scoring rules, robustness records and what makes a figure untrusted."""

from squint.evaluation.information_plane import copies, information_plane
from squint.evaluation.plane_profile import PlaneProfile
from squint.evaluation.records import Finding, Outcome, Record, RobustnessReport
from squint.evaluation.robustness import evaluate
from squint.evaluation.settings import AttackSetting

__all__ = [
    "AttackSetting",
    "Finding",
    "Outcome",
    "PlaneProfile",
    "Record",
    "RobustnessReport",
    "copies",
    "evaluate",
    "information_plane",
]
