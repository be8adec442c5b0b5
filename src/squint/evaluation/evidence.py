"""Saved adversarial images scored again on unseen seeds, and anyone's challenge to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from squint import data as D
from squint._checks import InputError, check_number, format_fraction, parse_fraction
from squint.attacks.gradients import AnyModel
from squint.attacks.modes import evaluation_mode
from squint.evaluation.arrays import read_npz
from squint.evaluation.evidence_files import (
    FLOAT_TOLERANCE,
    MAX_BYTES,
    Evidence,
    fitting,
    load_evidence,
    submitted,
)
from squint.evaluation.frozen import frozen
from squint.evaluation.intervals import paired_bootstrap, wilson
from squint.evaluation.ladder_run import device_of
from squint.evaluation.scoring import RESUBMISSIONS, deployed_draws, is_random, score


@dataclass(frozen=True)
class Verification:
    """Evidence scored again, without attacking.

    Attributes:
        accuracy: of the deployed rule on the adversarial images.
        ci95: Wilson interval over images.
        single_draw_accuracy: of one draw of all members.
        saved_accuracy: the figure that came with the evidence.
        agrees: whether the two figures differ by no more than three standard errors of the resubmissions,
            and one image that another machine's arithmetic may turn; None where they are of different numbers
            of draws.
        n: images.
        seed: of the score stream.
    """

    accuracy: float
    ci95: tuple[float, float]
    single_draw_accuracy: float
    saved_accuracy: float
    agrees: bool | None
    n: int
    seed: int


def verify(
    model: AnyModel,
    data: D.Data,
    evidence: Evidence | Path | str,
    *,
    seed: int,
    draws: int | None = None,
    resubmissions: int = RESUBMISSIONS,
    batch_size: int = 100,
) -> Verification:
    """Return what saved adversarial images do to the model on unseen draws; nothing is attacked.

    Args:
        model: what the evidence was found against.
        data: the clean images and labels, in the evidence's order.
        evidence: `Evidence`, or a file of `save_evidence`.
        seed: of the score stream; one that the evidence was not made with.
        draws: draws S per deployment; None: those of the evidence, or the model's own where it does not say.
        resubmissions: deployments R.
        batch_size: images scored at once; part of the stream's keys.

    Raises:
        squint.InputError: the evidence does not fit the data: labels, places, shapes or eps.
    """
    held = evidence if isinstance(evidence, Evidence) else load_evidence(evidence)
    source = "the evidence" if isinstance(evidence, Evidence) else str(evidence)
    points = fitting(data, held.images, held.index, held.labels, held.eps, source)
    own = deployed_draws(model) if held.draws is None else held.draws
    count = own if draws is None else draws
    correct, single = _correct(model, points, held.labels, "evidence", seed, count, resubmissions, batch_size)
    n, accuracy, saved = len(correct), float(correct.mean()), float(held.correct.mean())
    error = _resubmission_error(model, correct, held.correct, resubmissions, held.resubmissions)
    agrees = abs(accuracy - saved) <= 3 * error + 1 / n if count == own else None
    return Verification(accuracy, wilson(accuracy * n, n), single, saved, agrees, n, seed)


def _resubmission_error(model: AnyModel, a: Tensor, b: Tensor, tries_a: int, tries_b: int) -> float:
    """Return the standard error of the difference of two means over the same images, from resubmissions."""
    if not is_random(model):
        return 0.0
    p = (a + b) / 2
    return math.sqrt(float((p * (1 - p)).sum()) * (1 / tries_a + 1 / tries_b)) / len(a)


@dataclass(frozen=True)
class Challenge:
    """Someone's adversarial images against the record's, on the same images of the data.

    Attributes:
        accuracy: of the deployed rule on the challenger's images.
        ci95: Wilson interval over images.
        record_accuracy: on the record's images of the same places, same scoring; None without a record.
        difference_ci95: bootstrap interval of the paired difference, challenger less record; None likewise.
        beats_record: whether the challenger breaks more: that whole interval lies below zero, and the
            difference is more than three standard errors of the resubmissions.
        n: images.
        seed: of the score stream.
    """

    accuracy: float
    ci95: tuple[float, float]
    record_accuracy: float | None
    difference_ci95: tuple[float, float] | None
    beats_record: bool
    n: int
    seed: int


def break_with(
    model: AnyModel,
    data: D.Data,
    file: Path | str,
    *,
    eps: float | str,
    record: Evidence | Path | str | None = None,
    seed: int = 0,
    draws: int | None = None,
    resubmissions: int = RESUBMISSIONS,
    batch_size: int = 100,
) -> Challenge:
    """Return how anyone's adversarial images do, scored as the ladder's are, and whether they beat a record.

    The file is an npz without pickle: `images` (n, channels, height, width), uint8 or float in [0, 1];
    `index` (n,), distinct places in the data; `labels` (n,). Images of floats must lie within eps of the
    clean ones, images of bytes within eps + 1/510, half a grey level of rounding.

    Args:
        model: the model that is challenged.
        data: the clean images and labels.
        file: the challenger's images.
        eps: L∞ radius, a number or text such as "5/255".
        record: evidence that the challenge is held against; it must hold every place that `file` names.
        seed: of the score stream.
        draws: draws S per deployment; None: the model's own.
        resubmissions: deployments R.
        batch_size: images scored at once; part of the stream's keys.

    Raises:
        squint.InputError: the file is not such a file or breaks the budget; the line says where.
    """
    path, radius = Path(file), parse_fraction("eps", eps)
    images, index, labels = submitted(read_npz(path, max_bytes=MAX_BYTES), path)
    points = fitting(data, images, index, labels, radius, str(path))
    rest = (seed, draws, resubmissions, batch_size)
    theirs, _ = _correct(model, points, labels, "challenge", *rest)
    n, accuracy = len(theirs), float(theirs.mean())
    if record is None:
        return Challenge(accuracy, wilson(accuracy * n, n), None, None, False, n, seed)
    held = record if isinstance(record, Evidence) else load_evidence(record)
    if abs(held.eps - radius) > FLOAT_TOLERANCE:
        raise InputError(
            f"the record was made at eps {format_fraction(held.eps)}; the challenge at "
            f"{format_fraction(radius)} cannot be held against it"
        )
    place = {int(i): row for row, i in enumerate(held.index)}
    missing = [int(i) for i in index if int(i) not in place]
    if missing:
        raise InputError(f"the record holds no image {missing[0]} of {path}; needed: every place it names")
    rows = torch.tensor([place[int(i)] for i in index])
    own = fitting(data, held.images[rows], index, held.labels[rows], held.eps, "the record")
    ours, _ = _correct(model, own, labels, "record", *rest)
    low, high = paired_bootstrap(theirs, ours, seed=seed)
    record_accuracy = float(ours.mean())
    # The bootstrap shows the chance that lies in the images. Of one image all chance is the noise's.
    noise = 3 * _resubmission_error(model, theirs, ours, resubmissions, resubmissions)
    beats = high < 0 and record_accuracy - accuracy > noise
    return Challenge(accuracy, wilson(accuracy * n, n), record_accuracy, (low, high), beats, n, seed)


def _correct(
    model: AnyModel,
    points: Tensor,
    labels: Tensor,
    purpose: str,
    seed: int,
    draws: int | None,
    resubmissions: int,
    batch_size: int,
) -> tuple[Tensor, float]:
    """Return each image's share of correct deployments, and the single-draw accuracy: the ladder's rules."""
    check_number("batch_size", batch_size, 1, whole=True)
    check_number("resubmissions", resubmissions, 1, whole=True)
    count = check_number("draws", deployed_draws(model) if draws is None else draws, 1, whole=True)
    device, correct, single = device_of(model), [], []
    with evaluation_mode(model):
        copy = frozen(model)
        for batch, first in enumerate(range(0, len(points), batch_size)):
            scores = score(
                copy,
                points[first : first + batch_size].to(device),
                labels[first : first + batch_size].to(device),
                draws=count,
                resubmissions=resubmissions,
                seed=seed,
                keys=(purpose, batch),
            )
            correct.append(scores.correct)
            single.append(scores.single_errors.double())
    return torch.cat(correct), float(1 - torch.cat(single).mean())
