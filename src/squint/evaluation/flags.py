"""Red flags that are read off outcomes: what no honest evaluation shows, each as a typed finding.

Every function takes per-image shares of correct deployments and returns what it found; nothing here runs a
model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from squint._checks import InputError, format_fraction
from squint.evaluation.budgets import Rung
from squint.evaluation.records import Finding
from squint.evaluation.rungs import SPENT
from squint.evaluation.scoring import RESUBMISSIONS, Scores

POINT = 0.01
"""How far one accuracy may lie above another before the difference is looked at."""
LATE_FALL = 0.08
"""Share of the images that may fall to a black box alone before gradients are thought to be masked."""
_BLACK_BOXES = {"square", "spsa", "transfer"}
_LEVEL = float(special.ndtr(-2.0))
"""Chance of an excess beyond two standard errors: the level of one comparison, and of Holm's family."""
FEWEST_IMAGES = 100
"""Fewer images than this settle nothing."""


@dataclass(frozen=True)
class Comparison:
    """Two settings of which the second should not leave the model more accurate than the first.

    Attributes:
        kind: kind of the finding where it does.
        lower: name of the setting whose accuracy bounds the other's.
        lower_correct: its share of correct deployments per image (n,).
        upper: name of the other setting.
        upper_correct: its share of correct deployments on the same images (n,).
    """

    kind: str
    lower: str
    lower_correct: Tensor
    upper: str
    upper_correct: Tensor


def excesses(comparisons: Sequence[Comparison]) -> list[Finding]:
    """Return a finding for each comparison whose second setting is more accurate, Holm-corrected.

    Paired over images: with d the mean difference and e its standard error, (d − 0.01)/e is compared with the
    normal quantile; the family of all comparisons is held at the level of two standard errors by Holm's
    step-down rule (Holm 1979), so a comparison that stands alone needs an excess of one point and two errors.

    Raises:
        squint.InputError: outcomes of different images, or of fewer than two.
    """
    tested = sorted(
        ((_excess(comparison), comparison) for comparison in comparisons), key=lambda pair: pair[0].chance
    )
    findings = []
    for place, (excess, comparison) in enumerate(tested):
        if excess.chance > _LEVEL / (len(tested) - place):
            break
        accuracies = float(comparison.lower_correct.mean()), float(comparison.upper_correct.mean())
        findings.append(
            Finding(
                comparison.kind,
                f"accuracy is {accuracies[1]:.1%} under {comparison.upper} and {accuracies[0]:.1%} under "
                f"{comparison.lower}, which should not be the stronger attack",
                {
                    "lower": comparison.lower,
                    "upper": comparison.upper,
                    "lower_accuracy": accuracies[0],
                    "upper_accuracy": accuracies[1],
                    "excess": excess.mean,
                    "standard_error": excess.error,
                    "p_value": excess.chance,
                    "comparisons": len(tested),
                    "n": len(comparison.lower_correct),
                },
            )
        )
    return findings


def rising(kind: str, settings: Sequence[tuple[str, Tensor]]) -> list[Comparison]:
    """Return the comparisons of every two settings, named in ascending order of strength.

    Args:
        kind: kind of the findings, such as "rises_with_eps".
        settings: name and per-image outcome (n,), the weakest attack first.
    """
    return [
        Comparison(kind, *weaker, *stronger)
        for place, weaker in enumerate(settings)
        for stronger in settings[place + 1 :]
    ]


def above_ceilings(
    outcomes: Mapping[float, Tensor], labels: Tensor, ceilings: Mapping[float, float | None]
) -> list[Finding]:
    """Return a finding for each radius at which accuracy stays above what any classifier can keep.

    Args:
        outcomes: radius to per-image outcome (n,).
        labels: labels of the same images (n,).
        ceilings: radius to the highest credible accuracy; None is the largest class's share of the images,
            the bound where every image can be made the same grey one (eps 128/255).
    """
    findings = []
    for eps, ceiling in ceilings.items():
        accuracy, bound = float(outcomes[eps].mean()), credible_share(labels, ceiling)
        if accuracy > bound:
            what = (
                "the largest class's share" if ceiling is None else "what an attack leaves of any classifier"
            )
            findings.append(
                Finding(
                    "accurate_at_large_eps",
                    f"accuracy is {accuracy:.1%} at eps {format_fraction(eps)}, above {what}, {bound:.1%}",
                    {"eps": format_fraction(eps), "accuracy": accuracy, "ceiling": bound, "n": len(labels)},
                )
            )
    return findings


def credible_share(labels: Tensor, ceiling: float | None) -> float:
    """Return the ceiling, or where there is none the largest class's share of the labels (n,)."""
    return float(torch.bincount(labels.cpu()).max()) / len(labels) if ceiling is None else ceiling


def late_falls(broken_by: Tensor, rungs: Sequence[Rung]) -> list[Finding]:
    """Return a finding for each rung of black boxes alone to which over 8 % of the images fell first.

    What every gradient left and a search or another model's gradient breaks was masked, not robust.

    Args:
        broken_by: number of the rung, from 1, that broke each image (n,); below 1 where none did.
        rungs: the ladder's rungs.
    """
    findings = []
    for number, rung in enumerate(rungs, 1):
        share = float((broken_by == number).double().mean())
        if share > LATE_FALL and {move.attack for move in rung.moves} <= _BLACK_BOXES:
            findings.append(
                Finding(
                    "masking_suspected",
                    f"{share:.1%} of the images fell first to {rung.name!r}, which uses no gradient of the "
                    f"model; allowed: {LATE_FALL:.0%}",
                    {"rung": rung.name, "share": share, "allowed": LATE_FALL, "n": len(broken_by)},
                )
            )
    return findings


def moves_skipped(reasons: Sequence[str]) -> list[Finding]:
    """Return a finding if moves were not run because the budget's gradients were spent, given the reasons."""
    spent = [reason for reason in reasons if reason.endswith(SPENT)]
    if not spent:
        return []
    return [
        Finding(
            "moves_skipped",
            f"{len(spent)} moves of the ladder were not run on all images: {'; '.join(spent)}",
            {"moves": spent},
        )
    ]


@dataclass(frozen=True)
class _Excess:
    mean: float
    error: float
    chance: float


def _excess(comparison: Comparison) -> _Excess:
    """Return the mean excess, its standard error and the one-sided chance of it at an excess of one point."""
    if comparison.lower_correct.shape != comparison.upper_correct.shape or len(comparison.lower_correct) < 2:
        raise InputError(
            f"outcomes of {comparison.lower} and {comparison.upper} have shapes "
            f"{tuple(comparison.lower_correct.shape)} and {tuple(comparison.upper_correct.shape)}; "
            "needed: the same images, 2 or more"
        )
    difference = comparison.upper_correct.double() - comparison.lower_correct.double()
    mean, error = float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))
    if error == 0:
        return _Excess(mean, error, 0.0 if mean > POINT else 1.0)
    return _Excess(mean, error, float(special.ndtr((POINT - mean) / error)))


def small_sample(scores: Scores) -> list[Finding]:
    """Return findings for a figure of too few images, or of a noisy model with too few resubmissions."""
    found, n = [], len(scores.errors)
    if n < FEWEST_IMAGES:
        found.append(
            Finding(
                "too_few_images",
                f"the figure is of {n} images; needed: {FEWEST_IMAGES}",
                {"n": n, "needed": FEWEST_IMAGES},
            )
        )
    if scores.random and scores.resubmissions < RESUBMISSIONS:
        found.append(
            Finding(
                "too_few_resubmissions",
                f"each image was submitted {scores.resubmissions} times; needed: {RESUBMISSIONS}",
                {"resubmissions": scores.resubmissions, "needed": RESUBMISSIONS},
            )
        )
    return found
