"""Our attacks against torchattacks' on the same networks and images, scored alike: raw records.

`python -m benchmarks.crosscheck` prints the table; with `--output FILE` it writes the records as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
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

RADII = (24 / 255, 48 / 255)
IMAGES = 64
RESUBMISSIONS = 64
SEED = 0
EPOCHS = 15
WIDTH = 12


@dataclass(frozen=True)
class Entry:
    """One attack of one library; `pair` names what it is compared with, `eot` counts single draws."""

    pair: str
    library: str
    name: str
    steps: int
    eot: int
    attack: Attack


def networks(seed: int = SEED, width: int = WIDTH) -> tuple[dict[str, squint.Ensemble], Tensor, Tensor]:
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
    images = data.test.images[:IMAGES].float() / 255
    return trained, images, data.test.labels[:IMAGES]


def best_loss(loss: str, steps: int, calls: int, *, draws: int | None = None) -> Attack:
    """Return torchattacks' APGD, `calls` deployments per gradient, with its points of highest loss.

    Called as usual it gives back the clean image unless some call on the way erred, and that lucky point
    where one did. Scored over fresh deployments either would count against it.
    """

    def run(module: torch.nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        attack = torchattacks.APGD(module, eps=eps, steps=steps, loss=loss, eot_iter=calls, seed=SEED)
        found: Tensor = attack.perturb(x, y, best_loss=True)[1]
        return found

    return external(run, draws=draws)


def entries(draws: int) -> list[Entry]:
    """Return the attacks in pairs, of equal steps and single draws per gradient but for the worst cases.

    torchattacks sees one deployment of `draws` draws per gradient; its EOT repeats that. Its AutoAttack gives
    clean images back where no call of the attack erred.
    """
    random = draws > 1
    few, many = (2 * draws, 5 * draws) if random else (1, 1)

    def ours(name: str, **options: Any) -> Attack:
        return lambda model, x, y, eps, g: getattr(attacks, name)(
            model, x, y, eps=eps, generator=g, **options
        )

    def pgd(model: torch.nn.Module, eps: float) -> Any:
        if random:
            return torchattacks.EOTPGD(model, eps=eps, alpha=eps / 4, steps=20, eot_iter=few // draws)
        return torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=20)

    def apgd(loss: str) -> Attack:
        return best_loss(loss, 50, many // draws)

    def rand(model: torch.nn.Module, eps: float) -> Any:
        return torchattacks.AutoAttack(model, eps=eps, version="rand", n_classes=10, seed=SEED)

    theirs = "EOTPGD" if random else "PGD"
    found = [
        Entry("pgd", "squint", "pgd", 20, few, ours("pgd", steps=20, eot=few)),
        Entry("pgd", "torchattacks", theirs, 20, few, from_torchattacks(pgd)),
    ]
    for loss in ("ce", "dlr"):
        found += [
            Entry(
                f"apgd-{loss}",
                "squint",
                f"apgd-{loss}",
                50,
                many,
                ours("apgd", steps=50, eot=many, loss=loss),
            ),
            Entry(f"apgd-{loss}", "torchattacks", f"APGD-{loss}, best loss", 50, many, apgd(loss)),
        ]
    rung = ours("targeted", eot=8 if random else 1)
    return [
        *found,
        Entry("worst case", "squint", "targeted (ladder rung 1)", 160, 8 if random else 1, rung),
        Entry("worst case", "torchattacks", "AutoAttack rand", 20, 20 * draws, from_torchattacks(rand)),
    ]


def crosscheck() -> dict[str, Any]:
    """Return the records of all attacks, and the paired difference of each pair, ours less theirs."""
    trained, x, y = networks()
    records: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for system, model in trained.items():
        clean = _scored(model, x, y, (system, "clean")).accuracy
        blocked = _zero_gradients(model, x, y)
        for eps in RADII:
            correct: dict[tuple[str, str], Tensor] = {}
            for entry in entries(deployed_draws(model)):
                record, share = _attacked(system, model, x, y, eps, entry)
                records.append(record | {"clean_accuracy": clean, "zero_gradients": blocked})
                correct[entry.pair, entry.library] = share
            for pair in dict.fromkeys(pair for pair, _ in correct):
                ours, theirs = correct[pair, "squint"], correct[pair, "torchattacks"]
                differences.append(
                    {
                        "system": system,
                        "eps": format_fraction(eps),
                        "pair": pair,
                        "difference": float((ours - theirs).mean()),
                        "ci95": paired_bootstrap(ours, theirs, seed=SEED),
                    }
                )
    return {
        "format": 1,
        "versions": {
            "squint": squint.__version__,
            "torch": torch.__version__,
            "torchattacks": torchattacks.__version__,
        },
        "training": {
            "model": f"small_cnn, width {WIDTH}, 4-bit weights and activations",
            "epochs": EPOCHS,
            "seed": SEED,
        },
        "records": records,
        "differences": differences,
    }


def _scored(model: squint.Ensemble, x: Tensor, y: Tensor, keys: tuple[object, ...]) -> Scores:
    draws = deployed_draws(model)
    return score(model, x, y, draws=draws, resubmissions=RESUBMISSIONS, seed=SEED, keys=keys)


def _zero_gradients(model: squint.Ensemble, x: Tensor, y: Tensor) -> float:
    """Return the share of images without a gradient: a network that masks them compares nothing."""
    generator = derive_generator(SEED, "crosscheck", "gradients")
    _, slopes = Units(model, y, 16).gradient(x, objective("ce", y), next_seed(generator))
    return float((slopes.flatten(1).abs().sum(1) == 0).double().mean())


def _attacked(
    system: str, model: squint.Ensemble, x: Tensor, y: Tensor, eps: float, entry: Entry
) -> tuple[dict[str, Any], Tensor]:
    """Return an attack's record, and each image's share of correct deployments."""
    radius = format_fraction(eps)
    generator = derive_generator(SEED, "crosscheck", system, radius, entry.library, entry.name)
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
        "seed": SEED,
        "draws": scores.draws,
        "resubmissions": scores.resubmissions,
        "robust_accuracy": scores.accuracy,
        "ci95": wilson(scores.accuracy * len(y), len(y)),
        "single_draw_accuracy": scores.single_draw_accuracy,
        "seconds": round(seconds, 3),
    }
    return record, scores.correct


def main(output: Path | None = None) -> None:
    """Print the table, and write the records where `output` says."""
    found = crosscheck()
    for r in found["records"]:
        low, high = r["ci95"]
        print(
            f"{r['system']:<14} {r['library']:<13} {r['attack']:<24} eps {r['eps']}  "
            f"steps {r['steps']:>3} eot {r['eot']:>3}  "
            f"{r['robust_accuracy']:6.1%} [{low:.1%}, {high:.1%}]  clean {r['clean_accuracy']:.1%}  "
            f"zero gradients {r['zero_gradients']:.0%}  "
            f"n={r['n']}  {r['seconds']:7.2f} s"
        )
    for d in found["differences"]:
        low, high = d["ci95"]
        print(
            f"{d['system']:<14} {d['pair']:<12} eps {d['eps']}  "
            f"ours less theirs {100 * d['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
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
    main(output_option("Our attacks against torchattacks', scored alike."))
