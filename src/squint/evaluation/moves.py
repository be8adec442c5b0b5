"""What each move of a budget runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from squint import attacks as A
from squint._checks import need_members
from squint._random import derive_generator
from squint.attacks.arc import GROUPS
from squint.attacks.geometry import step_sizes
from squint.attacks.gradients import AnyModel
from squint.evaluation.budgets import Attack, Move
from squint.evaluation.metering import Meter
from squint.evaluation.rungs import Assault, hidden_layers
from squint.evaluation.scoring import is_random
from squint.quantize import attacker_view

BETAS = (0.5, 1.0, 0.0, 0.25, 0.75)
"""Weights of MORA's unit term, in the order in which a short budget takes them."""


@dataclass(frozen=True, eq=False)
class _Run:
    """One move on one assault: its generator, the metered model, and where it starts (None: at random)."""

    move: Move
    on: Assault
    meter: Meter
    model: AnyModel
    start: Tensor | None
    generator: torch.Generator

    @property
    def steps(self) -> int:
        if not self.move.shared:
            return self.move.steps
        units = self.on.members or 1
        # ARC sees groups of a single member's draws as members.
        units = GROUPS if self.move.attack == "arc" and units == 1 else units
        return max(1, self.move.steps // units)

    @property
    def given(self) -> dict[str, Any]:
        """What every attack is told: radius, draws, start, randomness and draws held at once."""
        return {
            "eps": self.on.eps,
            "eot": self.move.eot,
            "start": self.start,
            "generator": self.generator,
            "chunk": self.on.chunk,
        }


def attack(move: Move, place: int, assault: Assault, meter: Meter) -> list[Tensor]:
    """Return the candidates (batch, ...) that a move finds: one, or one for each source or layer.

    With fewer than four classes the margin takes the place of the difference-of-logits ratio.

    Args:
        move: what to run.
        place: the move's place in its rung; part of the stream's keys.
        assault: on what.
        meter: counts the gradients and forward passes.
    """
    generator = derive_generator(assault.seed, "attack", *assault.keys, place)
    start = assault.best if move.start == "best" else None
    run = _Run(move, assault, meter, meter.counted(assault.model), start, generator)
    return [point.detach() for point in _RUNS[move.attack](run)]


def _loss(run: _Run) -> str:
    return "margin" if run.move.loss == "dlr" and run.on.classes < 4 else run.move.loss


def _targeted(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    yield A.targeted(
        run.model,
        on.x,
        on.y,
        steps=move.steps,
        refine_steps=move.refine,
        num_targets=move.targets,
        **run.given,
    )


def _apgd(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    yield A.apgd(
        run.model,
        on.x,
        on.y,
        steps=move.steps,
        loss=_loss(run),
        stratified=True,
        **run.given,
    )


def _apgd_targeted(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    yield A.apgd_targeted(
        run.model,
        on.x,
        on.y,
        steps=move.steps,
        screened=move.targets,
        refined=move.refine,
        loss="dlr" if on.classes >= 4 else "margin",
        stratified=True,
        **run.given,
    )


def _pgd(run: _Run) -> Iterable[Tensor]:
    yield _pgd_on(run, run.model, _decaying(run, run.steps), run.start)


def _decaying(run: _Run, steps: int) -> list[float]:
    """Return steps from eps / 4 to eps / 100: the last iterate is what a random model is judged at."""
    return step_sizes(run.on.eps / 4, run.on.eps / 100, steps)


def _pgd_on(run: _Run, model: AnyModel, sizes: Sequence[float], start: Tensor | None) -> Tensor:
    move, on = run.move, run.on
    return A.pgd(
        model,
        on.x,
        on.y,
        steps=len(sizes),
        step_size=sizes[0] or None,
        final_step_size=sizes[-1] or None,
        loss=_loss(run),
        temperature=move.temperature,
        adaptive_eot=move.adaptive and is_random(on.model),
        stratified=True,
        **run.given | {"start": start},
    )


def _arc(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    yield A.arc(
        need_members(run.model, "arc"),
        on.x,
        on.y,
        steps=run.steps,
        restarts=move.runs,
        random_start=run.start is None,
        max_classes=None if move.targets < 0 else move.targets,
        accept=move.accept,
        **run.given,
    )


def _mora(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    yield A.mora(
        need_members(run.model, "mora"),
        on.x,
        on.y,
        steps=move.steps,
        betas=BETAS[: move.runs],
        num_targets=None if move.targets < 0 else move.targets,
        ensemble_term=move.ensemble_term,
        stratified=True,
        **run.given,
    )


def _member_pgd(run: _Run) -> Iterable[Tensor]:
    on = run.on
    yield A.member_pgd(
        need_members(run.model, "member_pgd"),
        on.x,
        on.y,
        steps=run.steps,
        final_step_size=on.eps / 100 or None,
        stratified=True,
        **run.given,
    )


def _view_pgd(run: _Run) -> Iterable[Tensor]:
    """PGD with the backward of hidden quantizers swapped; the input's own never changes a sign."""
    move, model = run.move, run.on.model
    assert isinstance(model, nn.Module)
    names = hidden_layers(model)
    groups: Sequence[Sequence[str]] = [names] if move.layers == "together" else [[name] for name in names]
    in_turn = move.layers == "in_turn"
    # Where there are more layers than steps, the path visits layers that lie evenly spread.
    groups = [groups[i * len(groups) // move.steps] for i in range(move.steps)] if in_turn else groups
    groups = list(dict.fromkeys(tuple(group) for group in groups))
    steps = max(1, move.steps // len(groups)) if in_turn else move.steps
    # A path in turn is one descent: were the steps to begin anew at each layer, it would end on a long one.
    sizes = _decaying(run, steps * len(groups) if in_turn else steps)
    point = run.start
    for place, group in enumerate(groups):
        part = sizes[place * steps : (place + 1) * steps] if in_turn else sizes
        view = attacker_view(model, move.gradient, move.width_factor, layers=group)
        point = _pgd_on(run, run.meter.counted(view), part, point if in_turn else run.start)
        if not in_turn:
            yield point
    if in_turn and point is not None:
        yield point


def _spsa(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    yield A.spsa(
        run.model,
        on.x,
        on.y,
        steps=move.steps,
        final_step_size=on.eps / 100 or None,
        directions=move.runs,
        **run.given,
    )


def _square(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    yield A.square(run.model, on.x, on.y, steps=move.steps, **run.given)


def _transfer(run: _Run) -> Iterable[Tensor]:
    move, on = run.move, run.on
    for source in on.sources.values():
        yield A.transfer(
            [run.meter.counted(source)],
            on.x,
            on.y,
            steps=move.steps,
            diversity=0.5 if on.x.ndim == 4 else 0.0,
            **run.given | {"eot": move.eot if is_random(source) else 1},
        )


_RUNS: Mapping[Attack, Callable[[_Run], Iterable[Tensor]]] = {
    "targeted": _targeted,
    "apgd": _apgd,
    "apgd_targeted": _apgd_targeted,
    "pgd": _pgd,
    "arc": _arc,
    "mora": _mora,
    "member_pgd": _member_pgd,
    "view_pgd": _view_pgd,
    "spsa": _spsa,
    "square": _square,
    "transfer": _transfer,
}
