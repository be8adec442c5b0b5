"""Budgets of the ladder: which attacks each rung runs, with how many steps and draws.

One gradient is one draw of all members, forward and backward, for one image. `STANDARD` keeps every kind of
attack, the steps of the first three rungs and EOT 20; `EXHAUSTIVE` has more targets, restarts and runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from squint._checks import InputError, check_choice, check_number

Attack = Literal[
    "targeted",
    "apgd",
    "apgd_targeted",
    "pgd",
    "arc",
    "mora",
    "member_pgd",
    "view_pgd",
    "spsa",
    "square",
    "transfer",
]


@dataclass(frozen=True)
class Move:
    """One run of one attack.

    Attributes:
        attack: which attack; "view_pgd" is PGD through another surrogate of the hidden quantizers.
        steps: gradient steps (walks of "arc", candidates of "square").
        eot: single draws per gradient or evaluation.
        start: "best" for the best points so far, "random" for a random point of the ball.
        loss: loss of "apgd", "pgd" and "view_pgd".
        temperature: divides the logits inside the mean ("pgd").
        targets: targets of "targeted", screened targets of "apgd_targeted", targeted runs of "mora", classes
            that "arc" looks at (-1: all, of these two).
        refine: refining steps of "targeted", refined targets of "apgd_targeted".
        runs: restarts of "arc", number of weights beta of "mora", directions of "spsa".
        shared: divide the steps among the members, whose gradients are taken one by one.
        gradient: surrogate of "view_pgd", as `squint.attacker_view` names it.
        width_factor: how much wider the density of "expected" is than the noise ("view_pgd").
        accept: what a turn of "arc" must not make worse, as `squint.attacks.arc` names it.
        adaptive: let `eot` of "pgd" be where each example's number of draws begins.
        ensemble_term: pooled prediction that "mora" mixes with the units' logits: its "log" or "probability".
        layers: hidden layers whose surrogate "view_pgd" swaps: all "together", one after the other along one
            path ("in_turn", the steps divided among them), or a full run for "each".
    """

    attack: Attack
    steps: int
    eot: int
    start: Literal["best", "random"] = "best"
    loss: str = "margin"
    temperature: float = 1.0
    targets: int = 3
    refine: int = 1
    runs: int = 1
    shared: bool = False
    gradient: str = "identity"
    width_factor: float = 1.0
    layers: Literal["together", "in_turn", "each"] = "in_turn"
    accept: Literal["margin", "expected_accuracy"] = "margin"
    adaptive: bool = False
    ensemble_term: Literal["log", "probability"] = "log"

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("eot", self.eot, 1, whole=True)
        check_choice("start", self.start, ("best", "random"))


@dataclass(frozen=True)
class Rung:
    """Moves that start from the same best points; what they find is compared once, after the last of them."""

    name: str
    moves: tuple[Move, ...]


_Change = Callable[[tuple[Move, ...]], tuple[Move, ...]]


@dataclass(frozen=True)
class Budget:
    """What an evaluation may spend.

    Attributes:
        name: the preset's name, for records.
        rungs: in the order in which they are climbed.
        max_gradients: gradients per image after which no further move begins; None: no limit.
        resubmissions: deployments R when what was kept is scored; the persistent attacker with q tries
            needs 4 q.
        precise: take every gradient in float32, on any processor.
    """

    name: str
    rungs: tuple[Rung, ...]
    max_gradients: int | None = None
    resubmissions: int = 64
    precise: bool = False

    def __post_init__(self) -> None:
        if not self.rungs or not all(rung.moves for rung in self.rungs):
            raise InputError(f"budget {self.name!r} has no rung, or a rung without moves")
        if len({rung.name for rung in self.rungs}) < len(self.rungs):
            raise InputError(f"budget {self.name!r} names two rungs alike; allowed: distinct names")

    def first(self, rungs: int) -> Budget:
        """Return the same budget with its first rungs only."""
        return replace(self, name=f"{self.name}, first {rungs} rungs", rungs=self.rungs[:rungs])

    def with_draws(self, eot: int) -> Budget:
        """Return the same budget with `eot` draws in every move but transfer, whose are its sources'."""
        return self._changed(
            f"{self.name}, {eot} draws",
            lambda moves: tuple(m if m.attack == "transfer" else replace(m, eot=eot) for m in moves),
        )

    def doubled(self) -> Budget:
        """Return twice the steps, draws and random starts, without a limit: for the convergence gate."""

        def twice(moves: tuple[Move, ...]) -> tuple[Move, ...]:
            longer = tuple(
                replace(m, steps=2 * m.steps, eot=2 * m.eot, refine=m.refine * (1 + (m.attack == "targeted")))
                for m in moves
            )
            return longer + _all(longer, start="random")

        return replace(self._changed(f"{self.name}, doubled", twice), max_gradients=None, precise=True)

    def _changed(self, name: str, change: _Change) -> Budget:
        rungs = tuple(replace(rung, moves=change(rung.moves)) for rung in self.rungs)
        return replace(self, name=name, rungs=rungs)


def _all(moves: tuple[Move, ...], **fields: Any) -> tuple[Move, ...]:
    return tuple(replace(move, **fields) for move in moves)


def tiny(steps: int = 4, eot: int = 2) -> Budget:
    """Return two rungs of a few steps, for tests and first looks; it settles nothing."""
    return Budget(
        "tiny",
        (
            Rung("targeted", (Move("targeted", steps, eot, "random", targets=2, refine=steps),)),
            Rung(
                "apgd",
                (
                    Move("apgd", steps, eot, "random", loss="ce"),
                    Move("apgd", steps, eot, loss="dlr"),
                ),
            ),
        ),
    )


_TARGETED = Move("targeted", 20, 8, "random", targets=3, refine=100)

QUICK = Budget(
    "quick",
    (
        Rung("targeted", (_TARGETED,)),
        Rung("apgd", (Move("apgd", 10, 10, "random", loss="ce"), Move("apgd", 12, 10, loss="dlr"))),
    ),
    max_gradients=1_500,
)
"""Rung 1 and a short rung 2: 1,500 gradients an image. Never called the ladder."""

_VIEWS = (("identity", 1.0), ("expected", 2.0), ("expected", 4.0), ("additive", 1.0))

STANDARD = Budget(
    "standard",
    (
        Rung("targeted", (_TARGETED,)),
        Rung(
            "apgd",
            (
                Move("apgd", 100, 20, "random", loss="ce"),
                Move("apgd", 100, 20, loss="dlr"),
                Move("apgd_targeted", 100, 20, targets=3, refine=1),
            ),
        ),
        Rung(
            "pgd",
            (
                Move("pgd", 200, 20, loss="mean_ce"),
                Move("pgd", 50, 10, "random", loss="mean_logits_margin"),
                Move("pgd", 50, 10, loss="ce", temperature=10.0),
                Move("pgd", 50, 10, loss="ce", temperature=100.0),
            ),
        ),
        Rung(
            "members",
            (
                Move("arc", 9, 20, targets=3, shared=True),
                Move("arc", 6, 20, targets=3, shared=True, accept="expected_accuracy"),
                Move("mora", 18, 20, "random", targets=0, runs=2),
                Move("mora", 18, 20, targets=0, ensemble_term="probability"),
                Move("member_pgd", 50, 20, shared=True),
            ),
        ),
        Rung(
            "paths",
            (
                *(Move("view_pgd", 25, 20, gradient=g, width_factor=w) for g, w in _VIEWS[:3]),
                Move("view_pgd", 25, 20, "random", gradient="additive", layers="together"),
            ),
        ),
        Rung(
            "black box",
            (Move("spsa", 10, 4, runs=64), Move("square", 500, 20), Move("transfer", 25, 4, "random")),
        ),
    ),
    max_gradients=20_000,
    resubmissions=400,
)
"""All six rungs, at most 20,000 gradients an image with up to eight members."""

EXHAUSTIVE = Budget(
    "exhaustive",
    (
        Rung("targeted", (_TARGETED, replace(_TARGETED, start="best"))),
        Rung(
            "apgd",
            (
                *(Move("apgd", 100, 20, "random", loss=loss) for loss in ("ce", "dlr")),
                *(Move("apgd", 100, 20, loss=loss) for loss in ("ce", "dlr")),
                Move("apgd_targeted", 100, 20, targets=9, refine=3),
                Move("apgd_targeted", 100, 20, "random", targets=9, refine=3),
            ),
        ),
        Rung(
            "pgd",
            (
                *STANDARD.rungs[2].moves,
                Move("pgd", 100, 8, loss="margin", adaptive=True),
                Move("pgd", 100, 8, "random", loss="mean_ce", adaptive=True),
                *(
                    replace(move, start="best" if move.start == "random" else "random")
                    for move in STANDARD.rungs[2].moves
                ),
            ),
        ),
        Rung(
            "members",
            (
                Move("arc", 20, 20, targets=-1, runs=5),
                Move("arc", 20, 20, targets=-1, runs=5, accept="expected_accuracy"),
                Move("mora", 100, 20, "random", targets=-1, runs=5),
                Move("mora", 100, 20, targets=-1, runs=5),
                Move("mora", 100, 20, "random", targets=-1, runs=5, ensemble_term="probability"),
                Move("mora", 100, 20, targets=-1, runs=5, ensemble_term="probability"),
                Move("member_pgd", 50, 20),
                Move("member_pgd", 50, 20, "random"),
            ),
        ),
        Rung(
            "paths",
            (
                *(Move("view_pgd", 50, 20, gradient=g, width_factor=w, layers="each") for g, w in _VIEWS[:3]),
                *(Move("view_pgd", 50, 20, gradient=g, width_factor=w, layers="together") for g, w in _VIEWS),
                Move("view_pgd", 50, 20, "random", gradient="additive", layers="together"),
            ),
        ),
        Rung(
            "black box",
            (
                Move("spsa", 50, 20, runs=64),
                Move("square", 5_000, 20),
                Move("square", 5_000, 20, "random"),
                Move("transfer", 100, 20, "random"),
                Move("transfer", 100, 20),
            ),
        ),
    ),
    resubmissions=400,
    precise=True,
)
"""Every target, restart, run and layer of the protocol, with no limit."""

PRESETS = {budget.name: budget for budget in (QUICK, STANDARD, EXHAUSTIVE)}
"""The budgets by name."""


def named_budget(budget: Budget | str) -> Budget:
    """Return the preset of that name, or the budget itself.

    Raises:
        squint.InputError: there is no such preset.
    """
    if isinstance(budget, Budget):
        return budget
    check_choice("budget", budget, PRESETS)
    return PRESETS[budget]
