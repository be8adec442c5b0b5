"""What a run, a shipped model or a file of evidence knows of each image, and records of further attacks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from squint._checks import InputError, check_choice, format_fraction
from squint._files import read_json
from squint.evaluation.evidence_files import load_evidence
from squint.evaluation.records import LADDER, Record
from squint.report.results import parse_results
from squint.study.folder import read_config, read_results
from squint.study.hypothesis import EQUAL_PASSES
from squint.study.keeping import data_digests
from squint.study.pairs import settings_of
from squint.study.problems import problem
from squint.zoo import resolved

EVIDENCE = "evidence"
"""How settings of evidence begin: 8-bit images of a ladder; those of a ladder itself begin with its name."""
_RECORDS = TypeAdapter(list[Record])


@dataclass(frozen=True)
class Outcomes:
    """What one operand knows: shares of correct deployments by setting, and of its images what is known.

    Attributes:
        name: what it is called, for messages.
        system: name of the system.
        shares: shares (n,) by setting, such as "pgd 5/255", of the first images.
        data: data set and split, where known.
        images: digest of that split, where known.
        labels: of the images, where known.
        records: the system's, as they are written.
        weights: their file, where known.
    """

    name: str
    system: str
    shares: Mapping[str, Tensor]
    data: str | None = None
    images: str | None = None
    labels: Tensor | None = None
    records: Sequence[dict[str, Any]] = ()
    weights: Path | None = None


def outcomes_of(word: str) -> Outcomes:
    """Return the outcomes of RUN:SYSTEM, of RUN's headline, of a shipped model, or of a file of evidence.

    Raises:
        squint.InputError: none of these, no such system, or no outcomes yet.
    """
    if word.endswith(".npz"):
        return evidence_outcomes(Path(word), word)
    # A folder may have a colon in its name.
    place, system = word, ""
    if ":" in word and not Path(word).is_dir():
        place, _, system = word.rpartition(":")
    run = resolved(Path(place))
    recipe = read_config(run)
    name = system or recipe.headline_system
    check_choice("system", name, recipe.systems)
    records = _own_records(run, name)
    shares = {_spent(setting, row, records): row for setting, row in settings_of(run, name).items()}
    labels, evidence = None, run / "evidence" / f"{name}.npz"
    if evidence.is_file():
        found = evidence_outcomes(evidence, word)
        shares.update(found.shares)
        labels = found.labels
    if not shares:
        raise InputError(f"{run} has no outcomes of {name} yet: squint run --resume makes them")
    images = data_digests(run).get(recipe.attack.split)
    data = f"{recipe.dataset}, {recipe.attack.split}"
    file = run / "weights" / f"{name}.safetensors"
    weights = file if file.is_file() else None
    return Outcomes(f"{place}:{name}", name, shares, data, images, labels, records, weights)


def evidence_outcomes(path: Path, name: str) -> Outcomes:
    """Return what evidence of a ladder on the first images of its data says, under the name that it is given.

    Raises:
        squint.InputError: it is damaged, or of other images.
    """
    evidence = load_evidence(path)
    if not torch.equal(evidence.index, torch.arange(len(evidence.index))):
        raise InputError(f"{path} is not of the first images of its data; allowed: evidence of a ladder")
    setting = f"{EVIDENCE} {format_fraction(evidence.eps)}"
    return Outcomes(name, evidence.system, {setting: evidence.correct.double()}, labels=evidence.labels)


def check_labels(first: Outcomes, second: Outcomes) -> None:
    """Raise `InputError` where both know labels, and these differ on the images that both have."""
    if first.labels is not None and second.labels is not None:
        both = min(len(first.labels), len(second.labels))
        if not torch.equal(first.labels[:both], second.labels[:both]):
            raise InputError(f"{first.name} and {second.name} are on different images; allowed: the same")


def records_of(file: Path, system: str) -> list[dict[str, Any]]:
    """Return a system's records from a file of `squint attack --output`, one or more.

    Raises:
        squint.InputError: no such file, not what that command writes, or no record of the system.
    """
    found = read_json(file)
    try:
        # As JSON, where lists are tuples, and strictly: what is used is what stands there.
        _RECORDS.validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = problem(error.errors(include_url=False)[0])
        raise InputError(
            f"{file} holds no records ({first}); allowed: what squint attack --output writes"
        ) from None
    own = [each for each in found if each["system"] == system]
    if not own:
        systems = ", ".join(sorted({each["system"] for each in found})) or "nothing"
        raise InputError(f"{file} holds records of {systems}; allowed: records of {system}")
    return own


def _own_records(run: Path, system: str) -> list[dict[str, Any]]:
    if not (run / "results.json").is_file():
        return []
    results = read_results(run)
    parse_results(results, str(run / "results.json"))
    return [each for each in results["records"] if each["system"] == system]


def _spent(setting: str, row: Tensor, records: Sequence[dict[str, Any]]) -> str:
    """Return a setting with what was spent on it, where one name stands for several budgets.

    A published folder may hold the records of several ladders at one radius; the outcomes are of one of them.
    """
    own = [
        each
        for each in records
        if setting == f"{each['attack']} {each['eps']}"
        and (each["attack"] == LADDER or each["preset"] == EQUAL_PASSES)
    ]
    if len(own) > 1:
        mean = float(row.mean())
        own = [
            r for r in own if r["n"] == len(row) and math.isclose(r["robust_accuracy"], mean, abs_tol=1e-6)
        ]
    return f"{setting}, {own[0]['preset']}" if own else setting
