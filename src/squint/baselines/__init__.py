"""The rivals: every defence that squint is compared with, trained and attacked in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from pydantic import ValidationError

from squint._checks import InputError, check_choice, nearest
from squint.baselines.adp import Adp
from squint.baselines.adversarial_training import AdversarialTraining
from squint.baselines.consistency import Consistency
from squint.baselines.conversion import ConvertedNetwork
from squint.baselines.cure import Cure
from squint.baselines.dorefa import Dorefa
from squint.baselines.dverge import Dverge
from squint.baselines.empir import Empir
from squint.baselines.full_precision import FullPrecision
from squint.baselines.gal import Gal
from squint.baselines.gradient_regularisation import GradientRegularisation
from squint.baselines.lsq import Lsq
from squint.baselines.pact import Pact
from squint.baselines.pni import Pni
from squint.baselines.random_precision import RandomPrecision
from squint.baselines.rival import Rival, Setup
from squint.baselines.rse import Rse
from squint.baselines.trs import Trs
from squint.baselines.voting import VotingEnsemble

__all__ = ["RIVALS", "ConvertedNetwork", "Rival", "Setup", "VotingEnsemble", "make_rival"]

RIVALS: dict[str, type[Rival]] = {
    rival.name: rival
    for rival in (
        FullPrecision,
        Dorefa,
        Pact,
        Lsq,
        Empir,
        RandomPrecision,
        Rse,
        Pni,
        Adp,
        Gal,
        Dverge,
        Trs,
        GradientRegularisation,
        Cure,
        Consistency,
        AdversarialTraining,
    )
}
"""The rivals by the name that recipes give them."""


def make_rival(name: str, options: Mapping[str, Any] | None = None) -> Rival:
    """Return a rival by name, with the options that differ from its paper's.

    Raises:
        squint.InputError: one line that names an unknown rival or option, or a value that is not allowed.
    """
    check_choice("rival", name, RIVALS)
    kind = RIVALS[name]
    try:
        return kind(**dict(options or {}))
    except ValidationError as error:
        problems = "; ".join(_problem(kind, each) for each in error.errors(include_url=False))
        raise InputError(f"rival {name}: {problems}") from None


def _problem(kind: type[Rival], error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown option {place}{nearest(place, [field.name for field in fields(cast(Any, kind))])}"
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    allowed = said.split("allowed: ", 1)[-1]
    return f"{place} is {error['input']!r}; allowed: {allowed}"
