"""What a move needs to attack a batch, and what a model must have for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from squint.attacks.gradients import AnyModel
from squint.ensemble import Ensemble
from squint.evaluation.budgets import Move
from squint.quantize import StochasticQuantizer, set_rounding

TWIN = "deterministic twin"
SPENT = "gradients are spent"
"""How the reason ends for which a move is not run although the model allows it."""
_MEMBER_ATTACKS = ("arc", "mora", "member_pgd")


@dataclass(frozen=True, eq=False)
class Assault:
    """One batch of surviving images, and everything that a move needs to attack it.

    Attributes:
        model: what is attacked, in evaluation mode.
        members: number of members; None for a model without `member_logits`.
        classes: number of classes.
        sources: models to transfer from, by name, in evaluation mode.
        x: images (batch, ...) in [0, 1].
        y: labels (batch,).
        eps: L∞ radius.
        best: the best points so far (batch, ...).
        seed: base of the attack stream.
        keys: what else the stream depends on.
        chunk: draws whose graph is held in memory at once; None: all.
    """

    model: AnyModel
    members: int | None
    classes: int
    sources: Mapping[str, AnyModel]
    x: Tensor
    y: Tensor
    eps: float
    best: Tensor
    seed: int
    keys: tuple[object, ...]
    chunk: int | None


def obstacle(move: Move, assault: Assault) -> str | None:
    """Return why the move cannot be run on this model, or None."""
    if move.attack in _MEMBER_ATTACKS and assault.members is None:
        return f"{move.attack}: the model has no member_logits"
    if move.attack == "view_pgd" and not hidden_layers(assault.model):
        return f"view_pgd ({move.gradient}): the model has no hidden quantizers"
    if move.attack == "square" and assault.x.ndim != 4:
        return "square: the images are not (batch, channels, height, width)"
    if move.attack == "transfer" and not assault.sources:
        return "transfer: there are no source models"
    return None


def hidden_layers(model: object) -> list[str]:
    """Return the names of the quantizers whose backward an input gradient passes, but for the input's own."""
    if not isinstance(model, nn.Module):
        return []
    names = (m.name for m in model.modules() if isinstance(m, StochasticQuantizer))
    return list(
        dict.fromkeys(n for n in names if n != "input_quantizer" and not n.endswith("weight_quantizer"))
    )


def own_sources(model: AnyModel) -> dict[str, AnyModel]:
    """Return what a model can be attacked from without asking it: its members and its deterministic twin.

    A model of one member has no member of its own; one without noise has no twin.
    """
    found: dict[str, AnyModel] = {}
    if isinstance(model, Ensemble) and len(model.members) > 1:
        found.update({f"member {i}": member for i, member in enumerate(model.members)})
    if isinstance(model, nn.Module) and any(getattr(m, "stochastic", False) for m in model.modules()):
        twin = copy.deepcopy(model)
        set_rounding(twin, "nearest")
        found[TWIN] = twin
    return found
