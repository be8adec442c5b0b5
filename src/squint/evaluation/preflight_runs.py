"""What preflight runs: its probes, each attack's outcome on every image, and the comparisons between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from squint import attacks as A
from squint._random import derive_generator
from squint.attacks.gradients import AnyModel
from squint.evaluation.batch_outcomes import digest
from squint.evaluation.blind_spots import BLIND_DRAWS
from squint.evaluation.flags import Comparison, credible_share, rising
from squint.evaluation.gradient_flags import FIDELITY_DRAWS
from squint.evaluation.kept_parts import KeptParts
from squint.evaluation.machine import Fitting
from squint.evaluation.scoring import Scores, is_random, score
from squint.evaluation.white_box import Attack, Configured, WhiteBox, holding

OTHER_RADII = "PGD at eps "
"""How outcomes at several radii are called, eps itself among them, which PGD's steps have too."""


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
        blind_draws: draws by which is looked for what gradients do not see.
        resubmissions: deployments by which each outcome is scored; of 16 the draws add 0.3 points to the
            standard error over 200 images, which is 1 to 3 for what is compared.
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
    blind_draws: int = BLIND_DRAWS
    resubmissions: int = 16
    batch_size: int = 100
    chunk: int | None = None


class Runs:
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
        kept: KeptParts,
    ) -> None:
        self.model, self.x, self.y = model, x, y
        self.seed, self.draws, self.probes, self.fitting = seed, draws, probes, fitting
        self.kept = kept
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

        return self.outcome(found, eps, *keys)

    def at(self, points: Tensor, eps: float) -> Tensor:
        """Return the outcome at points (n, ...) of the images that were found before."""
        points = points[: len(self.x)].to(self.x)
        return self.outcome(lambda rows: points[rows], eps, "found", digest(points))

    def outcome(self, found: Callable[[slice], Tensor], *keys: object) -> Tensor:
        """Return each image's share of correct deployments (n,) at the points of every batch of rows."""
        size = self.probes.batch_size

        def share(rows: slice) -> Tensor:
            scored = partial(self._score, found(rows), self.y[rows], rows.start)
            return self.fitting.forward(self.model, scored).correct

        def part(rows: slice) -> Tensor:
            of = (self.x[rows], self.y[rows])
            return self.kept.part(partial(share, rows), "preflight", *keys, rows.start, of=of)

        return torch.cat([part(slice(first, first + size)) for first in range(0, len(self.x), size)])

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


def compare(run: Runs, eps: float, white: Tensor, sources: Sequence[AnyModel]) -> list[Comparison]:
    """Return every comparison of which an honest model shows no excess."""
    probes, noisy = run.probes, is_random(run.model)
    usual = run.usual
    radii = sorted({min(factor * eps, 1.0) for factor in probes.eps_factors})
    by_eps = [(f"{OTHER_RADII}{radius:.4g}", run.pgd(radius, usual)) for radius in radii]
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


def outcomes_of(compared: Sequence[Comparison]) -> dict[str, Tensor]:
    """Return every attack's outcome (n,) by its name."""
    pairs = [((each.lower, each.lower_correct), (each.upper, each.upper_correct)) for each in compared]
    return dict(each for pair in pairs for each in pair)


def beaten_by(compared: Sequence[Comparison], left: Mapping[str, Tensor], figure: Tensor) -> list[Comparison]:
    """Return the comparisons at eps of the figure's own points with attacks that were not compared yet."""
    known = {each.lower for each in compared if each.upper_correct is figure}
    others = [name for name in left if name not in known and not name.startswith(OTHER_RADII)]
    named = [name for name in others if left[name] is not figure]
    return [Comparison("ladder_beaten", name, left[name], "the ladder", figure) for name in named]


def _black_boxes(run: Runs, sources: Sequence[AnyModel]) -> Iterator[tuple[str, Attack]]:
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
