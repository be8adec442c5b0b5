"""Our attacks against torchattacks' on the same networks and images, scored alike: raw records.

`python -m benchmarks.crosscheck` prints the table; with `--output FILE` it writes the records as JSON. The
attacks of both libraries run once for each of `--seeds`, on the same networks, and are compared by each
image's mean over seeds. The networks are those of `tests/attacks/weights`, trained anew.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchattacks
from torch import Tensor

import squint
from squint import attacks
from squint._checks import format_fraction
from squint._random import derive_generator, next_seed
from squint.attacks.adapters import Attack, external, from_torchattacks
from squint.attacks.gradients import Units
from squint.attacks.objectives import objective
from squint.evaluation.intervals import paired_bootstrap, wilson
from squint.evaluation.scoring import Scores, deployed_draws, score

RADII = {"deterministic": (24 / 255, 32 / 255), "stochastic": (32 / 255,)}
IMAGES = 200
RESUBMISSIONS = 64
SEED = 0
EPOCHS = 15
WIDTH = 8
STEPS = 50
"""Of APGD."""


@dataclass(frozen=True)
class Entry:
    """One attack of one library; `pair` names what it is compared with, `eot` counts single draws."""

    pair: str
    library: str
    name: str
    steps: int
    eot: int
    attack: Attack


def networks(
    seed: int = SEED, width: int = WIDTH, images: int = IMAGES
) -> tuple[dict[str, squint.Ensemble], Tensor, Tensor]:
    """Return a deterministic and a stochastic network trained on digits, and the test images and labels."""
    data = squint.data.load("digits")
    trained = {}
    for name, input_bits, noise, draws in (("deterministic", 2, 0.0, 1), ("stochastic", 1, 1.0, 4)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            plain = squint.models.small_cnn(in_channels=1, width=width)
        # Learned ranges can end up with both values of a 1-bit input outside the first layer's: no gradient.
        net = squint.quantize(
            plain, 4, 4, input_bits, input_width=noise, activation_width=0.0, learn_range=False
        )
        ens = squint.Ensemble([net], draws=draws)
        loss = squint.ObjectiveConfig(ensemble=1.0, agreement=10.0 if noise else 0.0)
        config = squint.TrainConfig(
            epochs=EPOCHS,
            batch_size=64,
            learning_rate=0.006,
            draws=2 if noise else 1,
            seed=seed,
            objective=loss,
            evaluate_every=EPOCHS,
        )
        squint.fit(ens, data.train, config)
        trained[name] = ens.eval()
    return trained, data.test.images[:images].float() / 255, data.test.labels[:images]


def best_loss(loss: str, steps: int, calls: int, *, draws: int | None = None) -> Attack:
    """Return torchattacks' APGD, `calls` deployments per gradient, with its points of highest loss.

    Called as usual it gives back the clean image unless some call on the way erred, and that lucky point
    where one did. Scored over fresh deployments either would count against it.
    """

    def run(module: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        seed = _own_seed()
        attack = torchattacks.APGD(module, eps=eps, steps=steps, loss=loss, eot_iter=calls, seed=seed)
        found: Tensor = attack.perturb(x, y, best_loss=True)[1]
        return found

    return external(run, draws=draws)


def _own_seed() -> int:
    """Return a seed from torch's global stream, which `external` has seeded: these attacks reset it."""
    return int(torch.randint(2**31, ()))


def entries(draws: int) -> list[Entry]:
    """Return the attacks in pairs, of equal steps and single draws per gradient but for the worst cases.

    A deterministic network meets PGD and both APGDs. A stochastic one meets EOTPGD, which sees one deployment
    of `draws` draws at a time, and AutoAttack's `rand`, which gives clean images back where no call erred.
    """

    def ours(name: str, **options: Any) -> Attack:
        return lambda model, x, y, eps, g: getattr(attacks, name)(
            model, x, y, eps=eps, generator=g, **options
        )

    if draws > 1:
        eot = 2 * draws

        def eotpgd(model: torch.nn.Module, eps: float) -> Any:
            return torchattacks.EOTPGD(model, eps=eps, alpha=eps / 4, steps=20, eot_iter=2)

        def rand(model: torch.nn.Module, eps: float) -> Any:
            seed = _own_seed()
            return torchattacks.AutoAttack(model, eps=eps, version="rand", n_classes=10, seed=seed)

        rung = ours("targeted", eot=8)
        return [
            Entry("pgd", "squint", "pgd", 20, eot, ours("pgd", steps=20, eot=eot)),
            Entry("pgd", "torchattacks", "EOTPGD", 20, eot, from_torchattacks(eotpgd)),
            Entry("worst case", "squint", "targeted (ladder rung 1)", 160, 8, rung),
            Entry("worst case", "torchattacks", "AutoAttack rand", 20, 20 * draws, from_torchattacks(rand)),
        ]

    def pgd(model: torch.nn.Module, eps: float) -> Any:
        return torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=20)

    found = [
        Entry("pgd", "squint", "pgd", 20, 1, ours("pgd", steps=20)),
        Entry("pgd", "torchattacks", "PGD", 20, 1, from_torchattacks(pgd)),
    ]
    for loss in ("ce", "dlr"):
        pair, apgd = f"apgd-{loss}", ours("apgd", steps=STEPS, loss=loss)
        theirs = best_loss(loss, STEPS, 1)
        found.append(Entry(pair, "squint", pair, STEPS, 1, apgd))
        found.append(Entry(pair, "torchattacks", f"APGD-{loss}, best loss", STEPS, 1, theirs))
    return found


def crosscheck(
    seeds: Sequence[int] = (SEED,), images: int = IMAGES, systems: Sequence[str] = tuple(RADII)
) -> dict[str, Any]:
    """Return the records of all attacks, and the paired difference of each pair, ours less theirs."""
    trained, x, y = networks(images=images)
    records: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for system in systems:
        model = trained[system]
        clean = _scored(model, x, y, (system, "clean")).accuracy
        blocked = _zero_gradients(model, x, y)
        for eps in RADII[system]:
            correct: dict[tuple[str, str], list[Tensor]] = {}
            for entry in entries(deployed_draws(model)):
                for seed in seeds:
                    record, share = _attacked(system, model, x, y, eps, entry, seed)
                    _tell(record)
                    records.append(record | {"clean_accuracy": clean, "zero_gradients": blocked})
                    correct.setdefault((entry.pair, entry.library), []).append(share)
            for pair in dict.fromkeys(pair for pair, _ in correct):
                ours, theirs = (torch.stack(correct[pair, side]) for side in ("squint", "torchattacks"))
                found = {"system": system, "eps": format_fraction(eps), "pair": pair}
                differences.append(found | difference(ours, theirs))
    return {
        "format": 2,
        "versions": {each.__name__: each.__version__ for each in (squint, torch, torchattacks)},
        "model": f"small_cnn, width {WIDTH}, 4-bit weights and activations, {EPOCHS} epochs, seed {SEED}",
        "seeds": list(seeds),
        "records": records,
        "differences": differences,
    }


def difference(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """Return the mean difference of shares (seeds, n), its interval over images and its error over seeds.

    The interval is of each image's mean over seeds, paired; the error treats the two libraries' seeds as
    independent, which they are.
    """
    each = [side.double().mean(1).tolist() for side in (ours, theirs)]
    error = math.hypot(*(statistics.stdev(s) / math.sqrt(len(s)) for s in each)) if len(ours) > 1 else None
    return {
        "squint": statistics.mean(each[0]),
        "torchattacks": statistics.mean(each[1]),
        "difference": statistics.mean(each[0]) - statistics.mean(each[1]),
        "ci95": paired_bootstrap(ours.double().mean(0), theirs.double().mean(0), seed=SEED),
        "standard_error_over_seeds": error,
        "n": ours.shape[1],
        "seeds": len(ours),
    }


def _tell(r: dict[str, Any]) -> None:
    low, high = r["ci95"]
    print(
        f"{r['system']:<14} {r['library']:<13} {r['attack']:<24} eps {r['eps']}  "
        f"steps {r['steps']:>3} eot {r['eot']:>3} seed {r['seed']}  "
        f"{r['robust_accuracy']:6.1%} [{low:.1%}, {high:.1%}]  n={r['n']}  {r['seconds']:7.2f} s",
        flush=True,
    )


def _scored(model: squint.Ensemble, x: Tensor, y: Tensor, keys: tuple[object, ...]) -> Scores:
    draws = deployed_draws(model)
    return score(model, x, y, draws=draws, resubmissions=RESUBMISSIONS, seed=SEED, keys=keys)


def _zero_gradients(model: squint.Ensemble, x: Tensor, y: Tensor) -> float:
    """Return the share of images without a gradient: a network that masks them compares nothing."""
    generator = derive_generator(SEED, "crosscheck", "gradients")
    _, slopes = Units(model, y, 16).gradient(x, objective("ce", y), next_seed(generator))
    return float((slopes.flatten(1).abs().sum(1) == 0).double().mean())


def _attacked(
    system: str, model: squint.Ensemble, x: Tensor, y: Tensor, eps: float, entry: Entry, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """Return an attack's record, and each image's share of correct deployments."""
    radius = format_fraction(eps)
    generator = derive_generator(seed, "crosscheck", system, radius, entry.library, entry.name)
    started = time.perf_counter()
    points = entry.attack(model, x, y, eps, generator)
    seconds = time.perf_counter() - started
    scores = _scored(model, points, y, (system, "crosscheck", radius))
    record = {
        "system": system,
        "pair": entry.pair,
        "library": entry.library,
        "attack": entry.name,
        "norm": "linf",
        "eps": radius,
        "steps": entry.steps,
        "eot": entry.eot,
        "restarts": 1,
        "n": len(y),
        "seed": seed,
        "draws": scores.draws,
        "resubmissions": scores.resubmissions,
        "robust_accuracy": scores.accuracy,
        "ci95": wilson(scores.accuracy * len(y), len(y)),
        "single_draw_accuracy": scores.single_draw_accuracy,
        "seconds": round(seconds, 3),
    }
    return record, scores.correct


def main(
    output: Path | None = None,
    seeds: Sequence[int] = (SEED,),
    images: int = IMAGES,
    systems: Sequence[str] = tuple(RADII),
) -> None:
    """Print the table, and write the records where `output` says."""
    found = crosscheck(seeds, images, systems)
    for d in found["differences"]:
        low, high = (100 * end for end in d["ci95"])
        error = d["standard_error_over_seeds"]
        print(
            f"{d['system']:<14} {d['pair']:<12} eps {d['eps']}  {d['squint']:6.1%} against "
            f"{d['torchattacks']:6.1%}: {100 * d['difference']:+.1f} points [{low:+.1f}, {high:+.1f}]"
            + ("" if error is None else f", {100 * error:.1f} over {d['seeds']} seeds")
        )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def output_option(description: str) -> Path | None:
    """Return the file that `--output` names, or None."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the records")
    chosen: Path | None = parser.parse_args().output
    return chosen


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Our attacks against torchattacks', scored alike.")
    options.add_argument("--output", type=Path, default=None, help="JSON file for the records")
    options.add_argument("--seeds", type=int, nargs="+", default=[SEED], help="seeds of the attacks")
    options.add_argument("--images", type=int, default=IMAGES, help="test images, from the first")
    options.add_argument("--systems", choices=RADII, nargs="+", default=list(RADII), help="networks attacked")
    given = options.parse_args()
    main(given.output, given.seeds, given.images, given.systems)
