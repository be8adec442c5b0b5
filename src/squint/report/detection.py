"""`detection.json`, checked and typed: detectors with an attack on them, and without, never one alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squint._checks import InputError, check_number, parse_fraction, shown
from squint._files import read_text
from squint.evaluation.detection.separation import Separation
from squint.report.fields import Fields, Interval
from squint.report.results import Flag, parse_flag

FORMAT_VERSION = 1
CLEAN = "clean, correct"
"""Name of the negatives among the histograms' sets."""


@dataclass(frozen=True)
class Attacked:
    """One attack on one detector; `area` is None where no deployment errs."""

    attack: str
    adaptive: bool
    steps: int
    eot: int
    error: float
    evasion: float
    evasion_ci95: Interval
    area: Separation | None


@dataclass(frozen=True)
class Resubmitted:
    """Up to `tries` submissions, an attacker's until one is unflagged, and as many of clean images."""

    tries: int
    success: float
    clean_flagged_once: float
    clean_flagged_always: float


@dataclass(frozen=True)
class Detected:
    """One detector at one eps; shares are fractions, `eps` keeps its written form.

    `roc` holds each attack's and control's detection rates at ascending false-alarm rates, `shares` each
    set's histogram between `edges`.
    """

    system: str
    score: str
    norm: str
    eps: str
    radius: float
    n: int
    draws: int
    resubmissions: int
    calibration: int
    false_alarm_rate: float
    threshold: float
    clean_accuracy: float
    clean_false_alarms: float
    clean_false_alarms_ci95: Interval
    clean_accepted_accuracy: float
    attacks: tuple[Attacked, ...]
    controls: Mapping[str, Separation | None]
    adaptive_auroc: float | None
    non_adaptive_auroc: float | None
    accuracy: float
    ci95: Interval
    non_adaptive_accuracy: float
    resubmitted: tuple[Resubmitted, ...]
    flags: tuple[Flag, ...]
    declared_trusted: bool
    seconds: float | None
    roc: Mapping[str, tuple[tuple[float, float], ...]]
    edges: tuple[float, ...]
    shares: Mapping[str, tuple[float, ...]]

    @property
    def trusted(self) -> bool:
        """Whether the figure may be believed: declared so, and without a single red flag."""
        return self.declared_trusted and not self.flags

    @property
    def clean_with_rejection(self) -> float:
        """Share of clean deployments that do not err unflagged: the accuracy with rejection at eps 0."""
        return min(1.0, self.clean_accepted_accuracy + self.clean_false_alarms)

    @property
    def patience(self) -> Resubmitted | None:
        """The most patient attacker that was measured, beyond a single submission."""
        return max((r for r in self.resubmitted if r.tries > 1), key=lambda r: r.tries, default=None)

    def worst(self, *, adaptive: bool) -> Attacked | None:
        """Return the attack with the lowest AUROC among those that know the detector, or that do not."""
        found = [(a.area.auroc, a) for a in self.attacks if a.adaptive == adaptive and a.area is not None]
        return min(found, key=lambda pair: pair[0])[1] if found else None


@dataclass(frozen=True)
class Detection:
    """All detectors of a run, and the systems that cannot disagree with themselves."""

    records: tuple[Detected, ...]
    left_out: tuple[str, ...]


def read_detection(run: Path) -> Detection | None:
    """Return what `squint detect` wrote into a run folder, or None where it did not.

    Raises:
        InputError: `detection.json` is corrupt; the message names the place.
    """
    path = run / "detection.json"
    if not path.is_file():
        return None
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    top = Fields(data, str(path))
    if top.data.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version is {top.data['format_version']!r}; allowed: {FORMAT_VERSION}"
        )
    curves = {(f.text("system"), f.text("score"), f.text("eps")): f for f in top.objects("curves")}
    records = []
    for f in top.objects("records"):
        place = (f.text("system"), f.text("score"), f.text("eps"))
        if place not in curves:
            raise InputError(f"{f.where}: curves has none of {', '.join(place)}; needed: one per record")
        records.append(_record(f, curves[place]))
    left_out = top.data.get("left_out") or []
    if not isinstance(left_out, list):
        raise InputError(f"{path}: left_out is {shown(left_out)}; allowed: a list of names")
    return Detection(tuple(records), tuple(str(name) for name in left_out))


def _record(f: Fields, curve: Fields) -> Detected:
    trusted, flags = f.data.get("trusted"), f.data.get("red_flags") or []
    if not isinstance(trusted, bool) or not isinstance(flags, list):
        raise InputError(f"{f.where}: trusted is {trusted!r}; allowed: true or false, with a list of flags")
    controls = Fields(f.mapping("controls"), f"{f.where}: controls")
    drawn = Fields(curve.mapping("histograms"), f"{curve.where}: histograms")
    roc = Fields(curve.mapping("roc"), f"{curve.where}: roc")
    shares = Fields(drawn.mapping("shares"), f"{drawn.where}: shares")
    edges = _numbers(drawn, "edges")
    for name in shares.data:
        if len(_numbers(shares, name)) != len(edges) - 1:
            raise InputError(f"{shares.where}: {name} needs {len(edges) - 1} shares, one per bin")
    return Detected(
        system=f.text("system"),
        score=f.text("score"),
        norm=f.text("norm"),
        eps=f.text("eps"),
        radius=parse_fraction(f"{f.where}: eps", f.text("eps"), high=math.inf),
        n=f.whole("n"),
        draws=f.whole("draws"),
        resubmissions=f.whole("resubmissions"),
        calibration=f.whole("calibration"),
        false_alarm_rate=f.number("false_alarm_rate", 0, 1),
        threshold=f.number("threshold"),
        clean_accuracy=f.number("clean_accuracy", 0, 1),
        clean_false_alarms=f.number("clean_false_alarms", 0, 1),
        clean_false_alarms_ci95=f.interval("clean_false_alarms_ci95"),
        clean_accepted_accuracy=f.number("clean_accepted_accuracy", 0, 1),
        attacks=tuple(_attack(a) for a in f.objects("attacks")),
        controls={name: _area(controls, name) for name in controls.data},
        adaptive_auroc=f.optional_number("adaptive_auroc", 0, 1),
        non_adaptive_auroc=f.optional_number("non_adaptive_auroc", 0, 1),
        accuracy=f.number("accuracy_with_rejection", 0, 1),
        ci95=f.interval("ci95"),
        non_adaptive_accuracy=f.number("non_adaptive_accuracy_with_rejection", 0, 1),
        resubmitted=_resubmitted(f),
        flags=tuple(parse_flag(item, f.where) for item in flags),
        declared_trusted=trusted,
        seconds=f.optional_number("seconds"),
        roc={name: _roc(Fields(value, f"{roc.where}: {name}")) for name, value in roc.data.items() if value},
        edges=edges,
        shares={name: _numbers(shares, name) for name in shares.data},
    )


def _attack(f: Fields) -> Attacked:
    return Attacked(
        attack=f.text("attack"),
        adaptive=bool(f.data.get("adaptive")),
        steps=f.whole("steps"),
        eot=f.whole("eot"),
        error=f.number("error", 0, 1),
        evasion=f.number("evasion", 0, 1),
        evasion_ci95=f.interval("evasion_ci95"),
        area=_area(f, "separation"),
    )


def _area(f: Fields, key: str) -> Separation | None:
    if f.data.get(key) is None:
        return None
    part = Fields(f.data[key], f"{f.where}: {key}")
    return Separation(
        part.number("auroc", 0, 1),
        part.interval("auroc_ci95"),
        part.number("aupr", 0, 1),
        part.interval("aupr_ci95"),
        part.number("tpr_at_5_fpr", 0, 1),
        part.interval("tpr_at_5_fpr_ci95"),
        part.number("tpr_at_1_fpr", 0, 1),
        part.interval("tpr_at_1_fpr_ci95"),
        part.whole("positives"),
        part.whole("negatives"),
    )


def _resubmitted(f: Fields) -> tuple[Resubmitted, ...]:
    parts = Fields(f.mapping("persistent"), f"{f.where}: persistent")
    found = []
    for tries, held in parts.data.items():
        if not tries.isdecimal() or len(tries) > 9:
            raise InputError(f"{parts.where} has {shown(tries)}; allowed: numbers of submissions")
        if held is not None:
            part = Fields(held, f"{parts.where}: {tries}")
            figures = [
                part.number(k, 0, 1) for k in ("success", "clean_flagged_once", "clean_flagged_always")
            ]
            found.append(Resubmitted(int(tries), *figures))
    return tuple(found)


def _roc(f: Fields) -> tuple[tuple[float, float], ...]:
    fpr, tpr = _numbers(f, "fpr"), _numbers(f, "tpr")
    if len(fpr) != len(tpr):
        raise InputError(f"{f.where}: fpr has {len(fpr)} points and tpr {len(tpr)}; allowed: equal numbers")
    return tuple(zip(fpr, tpr, strict=True))


def _numbers(f: Fields, key: str) -> tuple[float, ...]:
    """Return a list of finite numbers."""
    held: Any = f.data.get(key)
    if not isinstance(held, list):
        raise InputError(f"{f.where}: {key} is no list of numbers")
    return tuple(float(check_number(f"{f.where}: {key}", value)) for value in held)
