"""A `detection.json` as `squint detect` writes it, small and made up."""

from __future__ import annotations

from typing import Any

GRID = [k / 100 for k in range(101)]


def separation(auroc: float) -> dict[str, Any]:
    around = [max(0.0, auroc - 0.05), min(1.0, auroc + 0.05)]
    return {
        "auroc": auroc, "auroc_ci95": around, "aupr": auroc, "aupr_ci95": around, "tpr_at_5_fpr": 0.4,
        "tpr_at_5_fpr_ci95": [0.3, 0.5], "tpr_at_1_fpr": 0.2, "tpr_at_1_fpr_ci95": [0.1, 0.3],
        "positives": 50, "negatives": 180,
    }  # fmt: skip


def attacked(name: str, auroc: float | None, evasion: float) -> dict[str, Any]:
    adaptive = name not in ("pgd", "pgd-eot10")
    return {
        "attack": name, "adaptive": adaptive, "steps": 1000 if adaptive else 20, "eot": 16, "error": 0.3,
        "evasion": evasion, "evasion_ci95": [evasion / 2, min(1.0, 1.5 * evasion)],
        "separation": None if auroc is None else separation(auroc),
    }  # fmt: skip


def record(system: str = "squint_a", eps: str = "5/255", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "system": system, "score": "predictive_information", "norm": "linf", "eps": eps, "n": 200, "draws": 4,
        "resubmissions": 64, "seed": 0, "false_alarm_rate": 0.05, "calibration": 500, "threshold": 0.25,
        "clean_accuracy": 0.9, "clean_false_alarms": 0.06, "clean_false_alarms_ci95": [0.03, 0.1],
        "clean_accepted_accuracy": 0.87,
        "attacks": [attacked("pgd", 0.9, 0.1), attacked("selective", 0.6, 0.3),
                    attacked("agreement", None, 0)],
        "controls": {"noise": separation(0.55), "fog 3": separation(0.7), "clean, misclassified": None},
        "non_adaptive_auroc": 0.9, "adaptive_auroc": 0.6, "non_adaptive_accuracy_with_rejection": 0.88,
        "accuracy_with_rejection": 0.68, "ci95": [0.61, 0.74],
        "persistent": {
            "1": {"success": 0.32, "clean_flagged_once": 0.06, "clean_flagged_always": 0.06},
            "10": {"success": 0.39, "clean_flagged_once": 0.21, "clean_flagged_always": 0.01}, "100": None,
        },
        "red_flags": [], "trusted": True, "seconds": 2000.0,
    }  # fmt: skip
    return made | changes


def curves(of: dict[str, Any]) -> dict[str, Any]:
    names = ["clean, correct", "noise", "pgd", "selective"]
    return {
        **{key: of[key] for key in ("system", "score", "eps")},
        "roc": {
            "pgd": {"fpr": GRID, "tpr": [x**0.1 for x in GRID]},
            "selective": {"fpr": GRID, "tpr": [x**0.7 for x in GRID]},
            "agreement": None,
            "noise": {"fpr": GRID, "tpr": GRID},
        },
        "histograms": {"edges": [0.0, 0.2, 0.4], "shares": {name: [0.75, 0.25] for name in names}},
    }


def detection(*records: dict[str, Any]) -> dict[str, Any]:
    held = list(records) or [record()]
    return {
        "format_version": 1,
        "records": held,
        "curves": [curves(each) for each in held],
        "left_out": ["full_precision"],
    }
