"""Evaluation: scoring rules, robustness records and what makes a figure untrusted."""

from squint.evaluation.records import Finding, Outcome, Record, RobustnessReport
from squint.evaluation.robustness import evaluate
from squint.evaluation.settings import AttackSetting

__all__ = ["AttackSetting", "Finding", "Outcome", "Record", "RobustnessReport", "evaluate"]
