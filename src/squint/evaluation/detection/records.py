"""Records of detection: with an attack on the detector and without, never one of them alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from squint.evaluation.detection.detector import Detector
from squint.evaluation.detection.separation import Interval, Separation
from squint.evaluation.records import Finding


@dataclass(frozen=True)
class AttackFigures:
    """One attack against one detector, scored on fresh deployments.

    Attributes:
        attack: its name.
        adaptive: whether it knows the detector.
        steps: gradient steps.
        eot: single draws per gradient.
        error: share of deployments that err.
        evasion: share of deployments that err and are not flagged.
        evasion_ci95: its interval over images.
        separation: deployments that err against correct clean ones; None if the attack never succeeds.
    """

    attack: str
    adaptive: bool
    steps: int
    eot: int
    error: float
    evasion: float
    evasion_ci95: Interval
    separation: Separation | None


@dataclass(frozen=True)
class DetectionRecord:
    """One detector at one eps. The headline is `accuracy_with_rejection`: the worst over all attacks.

    Attributes:
        system: name of the ensemble.
        score: the detector's score.
        norm: of the attacks.
        eps: radius as a fraction.
        n: images.
        draws: draws S of one deployment, shared by prediction and score.
        resubmissions: fresh deployments of each image that were scored.
        seed: base of every stream.
        false_alarm_rate: what was asked for.
        calibration: calibration examples.
        threshold: scores above it are flagged.
        clean_accuracy: share of correct clean deployments.
        clean_false_alarms: share of clean deployments that are flagged, correct or not.
        clean_false_alarms_ci95: its interval.
        clean_accepted_accuracy: share of clean deployments that are correct and not flagged.
        budget: of the attacks on the detector: `steps`, `step_size`, `eot`, `check_every` (steps between two
            iterates that are compared).
        attacks: every attack's figures.
        controls: separation of what is no attack from correct clean deployments: noise of the same norm,
            clean images that are misclassified, corruptions.
        non_adaptive_auroc: lowest over attacks that do not know the detector.
        adaptive_auroc: lowest over all attacks.
        non_adaptive_accuracy_with_rejection: 1 − share of wrong, unflagged deployments, each image under the
            worst attack that does not know the detector.
        accuracy_with_rejection: the same under the worst of all attacks.
        ci95: its interval over images.
        persistent: by submissions q: `success`, the chance that the first unflagged one of q submissions is
            wrong; `clean_flagged_once` and `clean_flagged_always`, the chances that at least one, and that
            all, of q submissions of a clean image are flagged. None below R = 4q.
        red_flags: why the figure cannot be trusted.
        trusted: no red flag.
        seconds: time of the attacks on this detector.
    """

    system: str
    score: str
    norm: str
    eps: str
    n: int
    draws: int
    resubmissions: int
    seed: int
    false_alarm_rate: float
    calibration: int
    threshold: float
    clean_accuracy: float
    clean_false_alarms: float
    clean_false_alarms_ci95: Interval
    clean_accepted_accuracy: float
    budget: Mapping[str, float]
    attacks: tuple[AttackFigures, ...]
    controls: Mapping[str, Separation | None]
    non_adaptive_auroc: float | None
    adaptive_auroc: float | None
    non_adaptive_accuracy_with_rejection: float
    accuracy_with_rejection: float
    ci95: Interval
    persistent: Mapping[str, Mapping[str, float] | None]
    red_flags: tuple[Finding, ...]
    trusted: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        plain = asdict(self)
        plain["red_flags"] = [asdict(flag) for flag in self.red_flags]
        return plain


@dataclass(frozen=True)
class DetectionReport:
    """All records of one system, with what its figures are drawn from.

    Attributes:
        records: one per score and eps.
        curves: one per record, plain data: `score`, `eps`, `roc` by attack and control (`fpr` and
            `tpr`, or None), `histograms` (`edges`, `shares` by set).
        adversarial: by (score, eps), the images (n, ...) of each one's worst attack.
        detectors: the detectors, one per score.
    """

    records: tuple[DetectionRecord, ...]
    curves: tuple[dict[str, Any], ...]
    adversarial: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    detectors: tuple[Detector, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return records and curves as plain data."""
        return {"records": [record.to_json() for record in self.records], "curves": list(self.curves)}

    def __str__(self) -> str:
        """Return one line per record, for people: the non-adaptive figure never stands alone."""
        return "\n".join(_line(record) for record in self.records)


def _line(r: DetectionRecord) -> str:
    verdict = "trusted" if r.trusted else "UNTRUSTED: " + "; ".join(flag.message for flag in r.red_flags)
    return (
        f"{r.system}, {r.score} at eps {r.eps}: AUROC {_number(r.adaptive_auroc)} attacked, "
        f"{_number(r.non_adaptive_auroc)} not attacked; accuracy with rejection "
        f"{r.accuracy_with_rejection:.1%} [{r.ci95[0]:.1%}, {r.ci95[1]:.1%}] attacked, "
        f"{r.non_adaptive_accuracy_with_rejection:.1%} not attacked; {_resubmitted(r)}"
        f"clean {r.clean_accuracy:.1%}, "
        f"false alarms {r.clean_false_alarms:.1%} (stated {r.false_alarm_rate:.1%}), n={r.n}, "
        f"S={r.draws}, seed={r.seed}; {verdict}"
    )


def _resubmitted(r: DetectionRecord) -> str:
    """Return what the most patient attacker measured reaches, and what it costs clean images."""
    measured = {int(q): held for q, held in r.persistent.items() if held is not None and q != "1"}
    if not measured:
        return ""
    most = max(measured)
    return (
        f"resubmitted up to {most} times until unflagged, wrong {measured[most]['success']:.1%}, and clean "
        f"flagged at least once {measured[most]['clean_flagged_once']:.1%}; "
    )


def _number(value: float | None) -> str:
    return "none (no success)" if value is None else f"{value:.3f}"


def resubmitted(
    evading: Tensor, flagged: Tensor, clean_flagged: Tensor, resubmissions: int, tries: Sequence[int]
) -> dict[str, dict[str, float] | None]:
    """Return the chances under q submissions, for each q of `tries`, unbiased over R deployments.

    That all q submissions are flagged has the estimate C(f, q)/C(R, q), f the flagged of R. Each submission
    that is not flagged is equally likely to come first, hence success = e/(R − f) · (1 − C(f, q)/C(R, q)).

    Args:
        evading: deployments that err unflagged, e (n,).
        flagged: deployments that are flagged, f (n,), of the attacked images.
        clean_flagged: the same of the clean images (n,).
        resubmissions: R.
        tries: numbers of submissions q; R ≥ 4q is needed.
    """
    found: dict[str, dict[str, float] | None] = {}
    for q in tries:
        if resubmissions < 4 * q:
            found[str(q)] = None
            continue
        total = math.comb(resubmissions, q)
        success = [
            e / (resubmissions - f) * (1 - math.comb(f, q) / total) if f < resubmissions else 0.0
            for e, f in zip(evading.tolist(), flagged.tolist(), strict=True)
        ]
        always = [math.comb(f, q) / total for f in clean_flagged.tolist()]
        once = [1 - math.comb(resubmissions - f, q) / total for f in clean_flagged.tolist()]
        found[str(q)] = {
            "success": sum(success) / len(success),
            "clean_flagged_once": sum(once) / len(once),
            "clean_flagged_always": sum(always) / len(always),
        }
    return found
