"""Preflight: run before a robustness figure is believed, it looks for what no honest figure shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from squint import attacks as A
from squint import data as D
from squint._checks import InputError, check_number, parse_fraction
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel, evaluation_mode, nan_reported
from squint.evaluation.flags import Comparison, above_ceilings, credible_share, excesses, rising
from squint.evaluation.frozen import frozen
from squint.evaluation.gradient_flags import (
    FIDELITY_DRAWS,
    Fidelity,
    fidelity,
    unevenly_faithful,
    unfaithful,
    zero_gradients,
)
from squint.evaluation.machine import Fitting
from squint.evaluation.model_flags import batch_dependence, dead_widths, probability_outputs, training_mode
from squint.evaluation.records import Finding
from squint.evaluation.scoring import RESUBMISSIONS, Scores, deployed_draws, is_random, score
from squint.evaluation.white_box import Attack, Configured, WhiteBox, holding

GREY = 128 / 255
"""A radius at which every image can be turned into one and the same."""
CIFAR_CEILINGS: Mapping[float, float | None] = {64 / 255: 0.05}
"""What no classifier of CIFAR keeps: 5 % at 64/255."""
ZERO_DRAWS = 8
"""Draws of the gradients that are looked for."""


def ceilings_of(dataset: str) -> Mapping[float, float | None]:
    """Return the ceilings that are known for a data set, by its name; none for most."""
    return CIFAR_CEILINGS if dataset in ("cifar10", "cifar100") else {}


@dataclass(frozen=True)
class Probes:
    """How much preflight spends; every probe is PGD unless it says otherwise.

    Attributes:
        images: images used, from the first; comparisons are paired over them.
        eps_factors: radii, as multiples of eps, whose accuracies must not rise.
        steps: steps of PGD whose accuracies must not rise; the last but one serves the other probes.
        eot: draws per gradient whose accuracies must not rise; models without noise skip them.
        restarts: restarts whose accuracies must not rise.
        square_steps: candidates of the Square attack.
        spsa_steps: steps of SPSA.
        spsa_directions: pairs of forward passes of each SPSA gradient.
        transfer_steps: steps of the transfer attack, where there are sources.
        fidelity_draws: common draws of the gradient's fidelity.
        resubmissions: deployments by which each outcome is scored.
        batch_size: images attacked at once; as many, drawn at random, are used for the gradient's fidelity
            and for what is asked of the outputs.
        chunk: draws whose graph is held in memory at once, halved where memory runs out; None: all.
    """

    images: int = 200
    eps_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    steps: tuple[int, ...] = (5, 20, 50)
    eot: tuple[int, ...] = (1, 4, 16)
    restarts: tuple[int, ...] = (1, 3)
    square_steps: int = 1000
    spsa_steps: int = 20
    spsa_directions: int = 32
    transfer_steps: int = 50
    fidelity_draws: int = FIDELITY_DRAWS
    resubmissions: int = RESUBMISSIONS
    batch_size: int = 100
    chunk: int | None = None


def preflight(
    model: AnyModel,
    data: D.Data,
    eps: float | str = 5 / 255,
    *,
    seed: int,
    attack: Attack | None = None,
    sources: Sequence[AnyModel] = (),
    ceilings: Mapping[float, float | None] | None = None,
    draws: int | None = None,
    probes: Probes | None = None,
    found: Tensor | None = None,
    fitting: Fitting | None = None,
) -> list[Finding]:
    """Return the red flags of a model and of attacks on it; an empty list says that none was found.

    Looks for accuracy that rises with eps, steps, EOT or restarts, or that FGSM, Square, SPSA or transfer
    lower further than the stronger attack (`flags.excesses`, one Holm family); accuracy beyond belief at
    large radii; missing, blocked or unfaithful gradients; dead widths; outputs that are probabilities or
    depend on the batch; a model in training mode. The model is attacked and scored in evaluation mode and
    left as it was found. Where memory runs out a batch begins again with half the draws at once and then half
    the images in a pass without graph, which changes no draw; a given attack that is no `WhiteBox` sees to
    its own.

    Args:
        model: any callable returning logits (batch, classes); `member_logits` is used where it exists.
        data: images in [0, 1] and labels.
        eps: L∞ radius of the figure.
        seed: base of every stream.
        attack: the white-box attack whose figure is judged, run at eps and at the ceilings' radii; None:
            `WhiteBox()`.
        sources: models to transfer from; without them transfer is left out.
        ceilings: further radii with the highest credible accuracy, such as `CIFAR_CEILINGS`; at 128/255 it is
            the largest class's share.
        draws: draws S per deployed prediction; None: the model's own `draws`.
        probes: what to spend.
        found: points (n, ...) that the white-box attack has found at eps already, in the order of `data`; it
            then runs no more at eps.
        fitting: what is known to fit into memory, and is told what is found; None: `probes.chunk`.

    Raises:
        squint.InputError: a value is out of range or there are fewer than 2 images.
    """
    probes = probes or Probes()
    eps = parse_fraction("eps", eps)
    draws = check_number("draws", deployed_draws(model) if draws is None else draws, 1, whole=True)
    images, labels = D.collect(data, probes.images)
    if len(images) < 2:
        raise InputError(f"preflight got {len(images)} image; allowed: 2 or more")
    device = _device(model)
    x, y = images.to(device), labels.to(device)
    fitting = Fitting(draws=probes.chunk) if fitting is None else fitting
    attack = attack or WhiteBox()
    in_training = training_mode(model)
    with evaluation_mode(model), nan_reported():
        run = _Runs(frozen(model), x, y, seed, draws, probes, fitting)
        if found is None:
            white = run.attack(attack, eps, "white box")
        else:
            points = found[: len(x)].to(x)
            white = run.outcome(lambda rows: points[rows])
        compared = _compare(run, eps, white, sources)
        limits = {GREY: None, **(ceilings or {})}
        outcomes = {radius: run.at_ceiling(attack, radius, ceiling) for radius, ceiling in limits.items()}
        # Not the first: data in some order would leave whole classes out.
        shuffled = torch.randperm(len(x), generator=derive_generator(seed, "preflight", "sample"))
        few = shuffled[: probes.batch_size].to(device)

        def faithful(held: int | None) -> Fidelity:
            return fidelity(model, x[few], y[few], eps, seed=seed, draws=probes.fidelity_draws, chunk=held)

        def absent(held: int | None) -> list[Finding]:
            return zero_gradients(
                model, x, y, seed=seed, draws=ZERO_DRAWS, chunk=held, batch_size=probes.batch_size
            )

        rises = fitting.both(model, faithful, probes.fidelity_draws)
        single = [
            in_training,
            fitting.forward(model, lambda: probability_outputs(model, x[few])),
            fitting.forward(model, lambda: batch_dependence(model, x[few], y[few], seed=seed)),
            unfaithful(rises),
            unevenly_faithful(rises),
        ]
        return [
            *(finding for finding in single if finding is not None),
            *dead_widths(model),
            *fitting.both(model, absent, ZERO_DRAWS),
            *above_ceilings(outcomes, labels, limits),
            *excesses(compared),
        ]


class _Runs:
    """Attacks on all images in batches, each scored on the same fresh draws as the others."""

    def __init__(
        self,
        model: AnyModel,
        x: Tensor,
        y: Tensor,
        seed: int,
        draws: int,
        probes: Probes,
        fitting: Fitting,
    ) -> None:
        self.model, self.x, self.y = model, x, y
        self.seed, self.draws, self.probes, self.fitting = seed, draws, probes, fitting
        self._pgd: dict[tuple[float, int, int, int], Tensor] = {}

    def attack(self, attack: Attack, eps: float, *keys: object) -> Tensor:
        """Return each image's share of correct deployments after the attack (n,)."""

        def found(rows: slice) -> Tensor:
            def run(held: int | None) -> Tensor:
                generator = derive_generator(self.seed, "preflight", *keys, rows.start)
                given = holding(attack, held)
                return given(self.model, self.x[rows], self.y[rows], eps, generator)

            if isinstance(attack, WhiteBox | Configured):
                return self.fitting.both(self.model, run, attack.eot)
            return run(None)

        return self.outcome(found)

    def outcome(self, found: Callable[[slice], Tensor]) -> Tensor:
        """Return each image's share of correct deployments (n,) at the points of every batch of rows."""
        size, shares = self.probes.batch_size, []
        for first in range(0, len(self.x), size):
            rows = slice(first, first + size)
            scored = partial(self._score, found(rows), self.y[rows], first)
            shares.append(self.fitting.forward(self.model, scored).correct)
        return torch.cat(shares)

    def _score(self, points: Tensor, labels: Tensor, first: int) -> Scores:
        # One score stream for all settings: paired differences then carry less noise.
        return score(
            self.model,
            points,
            labels,
            draws=self.draws,
            resubmissions=self.probes.resubmissions,
            seed=self.seed,
            keys=("preflight", first),
        )

    def pgd(self, eps: float, steps: int, eot: int = 1, restarts: int = 1) -> Tensor:
        """Return the outcome of PGD with steps of eps / 4."""
        key = (eps, steps, eot, restarts)
        if key not in self._pgd:
            settings = {"steps": steps, "restarts": restarts}
            self._pgd[key] = self.attack(Configured(A.pgd, eot, settings), eps, "pgd", *key)
        return self._pgd[key]

    def at_ceiling(self, attack: Attack, eps: float, ceiling: float | None) -> Tensor:
        """Return the outcome of the usual PGD where that is below the ceiling, else of the given attack."""
        usual = self.pgd(eps, self.usual)
        enough = float(usual.mean()) <= credible_share(self.y, ceiling)
        return usual if enough else self.attack(attack, eps, "ceiling", eps)

    @property
    def usual(self) -> int:
        """Steps of PGD in every probe that is not about steps."""
        steps = self.probes.steps
        return steps[-2] if len(steps) > 1 else steps[-1]


def _compare(run: _Runs, eps: float, white: Tensor, sources: Sequence[AnyModel]) -> list[Comparison]:
    """Return every comparison of which an honest model shows no excess."""
    probes, noisy = run.probes, is_random(run.model)
    usual = run.usual
    radii = sorted({min(factor * eps, 1.0) for factor in probes.eps_factors})
    by_eps = [(f"PGD at eps {radius:.4g}", run.pgd(radius, usual)) for radius in radii]
    by_steps = [(f"PGD with {steps} steps", run.pgd(eps, steps)) for steps in sorted(probes.steps)]
    by_eot = [(f"PGD with EOT {eot}", run.pgd(eps, usual, eot=eot)) for eot in sorted(probes.eot) if noisy]
    by_restarts = [
        (f"PGD with {count} restarts", run.pgd(eps, usual, restarts=count))
        for count in sorted(probes.restarts)
    ]
    one_step = run.attack(Configured(A.fgsm), eps, "fgsm")
    return [
        *rising("rises_with_eps", by_eps),
        *rising("rises_with_steps", by_steps),
        *rising("rises_with_eot", by_eot),
        *rising("rises_with_restarts", by_restarts),
        Comparison("fgsm_beats_pgd", "FGSM", one_step, f"PGD with {usual} steps", run.pgd(eps, usual)),
        *(
            Comparison(
                "black_box_beats_white_box", name, run.attack(black, eps, name), "the white box", white
            )
            for name, black in _black_boxes(run, sources)
        ),
    ]


def _black_boxes(run: _Runs, sources: Sequence[AnyModel]) -> Iterator[tuple[str, Attack]]:
    """Yield the attacks that use no gradient of the model."""
    probes, eot = run.probes, 4 if is_random(run.model) else 1
    spsa = {"steps": probes.spsa_steps, "directions": probes.spsa_directions}
    yield "SPSA", Configured(A.spsa, eot, spsa)
    if run.x.ndim == 4:
        yield "Square", Configured(A.square, eot, {"steps": probes.square_steps})
    if sources:
        diversity = 0.5 if run.x.ndim == 4 else 0.0

        def transferred(_: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
            return A.transfer(
                sources, x, y, eps=eps, steps=probes.transfer_steps, diversity=diversity, generator=generator
            )

        yield "transfer", transferred


def _device(model: object) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")
