"""Seconds to the same robust accuracy: the ladder's beginning against torchattacks' AutoAttack.

Both attack one stochastic ensemble (`rand`) or one deterministic network (`standard`) on the same images, and
what both leave is scored by our rules, over fresh deployments. `python -m benchmarks.ladder` prints the
tables; `--output FILE` also writes the rows as JSON, the deterministic network's to FILE-deterministic.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import torchattacks
from torch import Tensor

import squint
from benchmarks.crosscheck import best_loss, output_option
from squint import attacks
from squint._checks import format_fraction
from squint._random import derive_generator
from squint.attacks.adapters import Attack, from_torchattacks
from squint.attacks.gradients import AnyModel
from squint.evaluation.intervals import paired_bootstrap, wilson
from squint.evaluation.ladder import as_attack
from squint.evaluation.scoring import score
from squint.evaluation.white_box import keep_better

EPS = 48 / 255
WEIGHTS = Path(__file__).parents[1] / "tests" / "attacks" / "weights"
STILL_EPS = 32 / 255
"""Radius on the deterministic network."""
IMAGES = 32
DRAWS = 4
EPOCHS = 10
RESUBMISSIONS = 64
SEED = 0
BUDGETS = ((2, 10), (5, 25), (10, 50), (20, 100))
"""Steps per target and of the refinement; the last is the ladder's own first rung."""


def ensemble() -> tuple[squint.Ensemble, Tensor, Tensor]:
    """Return three differently quantized members behind a 1-bit stochastic input, and test data."""
    data = squint.data.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        plain = [squint.models.small_cnn(in_channels=1, width=12) for _ in range(3)]
    # Learned ranges can end up with both values of a 1-bit input outside the first layer's: no gradient.
    members = [
        squint.quantize(net, bits, 4, 1, activation_width=0.0, learn_range=False)
        for net, bits in zip(plain, (2, 3, 4), strict=True)
    ]
    ens = squint.Ensemble(members, draws=DRAWS)
    config = squint.TrainConfig(
        epochs=EPOCHS,
        batch_size=64,
        learning_rate=0.006,
        draws=2,
        seed=SEED,
        evaluate_every=EPOCHS,
        objective=squint.ObjectiveConfig(ensemble=1.0, agreement=10.0),
    )
    squint.fit(ens, data.train, config)
    return ens.eval(), data.test.images[:IMAGES].float() / 255, data.test.labels[:IMAGES]


def still() -> tuple[squint.Ensemble, Tensor, Tensor]:
    """Return the deterministic network of the cross-check, of 2-bit input, and test data."""
    ens = squint.load(WEIGHTS / "deterministic.safetensors").eval()
    test = squint.data.load("digits").test
    return ens, test.images[:IMAGES].float() / 255, test.labels[:IMAGES]


def still_contenders() -> list[tuple[str, str, Attack]]:
    """Return library, name and attack for a network without noise: one draw, and the whole AutoAttack."""

    def standard(model: torch.nn.Module, eps: float) -> Any:
        return torchattacks.AutoAttack(model, eps=eps, version="standard", n_classes=10, seed=SEED)

    def rung(steps: int, refine: int) -> Attack:
        return lambda model, x, y, eps, g: attacks.targeted(
            model, x, y, eps=eps, steps=steps, refine_steps=refine, eot=1, generator=g
        )

    return [
        *(("squint", f"targeted 3 x {s} + {r} steps", rung(s, r)) for s, r in BUDGETS),
        ("squint", "ladder, preset quick", as_attack("quick")),
        ("torchattacks", "AutoAttack standard", from_torchattacks(standard, draws=1)),
    ]


def contenders() -> list[tuple[str, str, Attack]]:
    """Return library, name and attack.

    AutoAttack comes as the library has it, 10 steps, which gives clean images back where no call erred; and
    as the two APGDs it is made of, at 10 steps and at the paper's 100, with their points of highest loss, of
    which the better is kept on 32 common draws as our own attacks keep theirs.
    """

    def rand(model: torch.nn.Module, eps: float) -> Any:
        return torchattacks.AutoAttack(model, eps=eps, version="rand", n_classes=10, seed=SEED)

    def kept(steps: int) -> Attack:
        def attack(model: AnyModel, x: Tensor, y: Tensor, eps: float, generator: torch.Generator) -> Tensor:
            points = [
                best_loss(loss, steps, 20, draws=1)(model, x, y, eps, generator) for loss in ("ce", "dlr")
            ]
            return keep_better(model, y, points, 32, generator)

        return attack

    def rung(steps: int, refine: int) -> Attack:
        return lambda model, x, y, eps, g: attacks.targeted(
            model, x, y, eps=eps, steps=steps, refine_steps=refine, eot=8, generator=g
        )

    return [
        *(("squint", f"targeted 3 x {s} + {r} steps, 8 draws", rung(s, r)) for s, r in BUDGETS),
        ("squint", "ladder, preset quick", as_attack("quick")),
        ("torchattacks", "AutoAttack rand, 10 steps, eot 20", from_torchattacks(rand, draws=1)),
        ("torchattacks", "its two APGDs, best loss, 10 steps, eot 20", kept(10)),
        ("torchattacks", "its two APGDs, best loss, 100 steps, eot 20", kept(100)),
    ]


def measure(noisy: bool = True) -> dict[str, Any]:
    """Return a row per contender, and for each of theirs our cheapest budget that leaves no more accuracy."""
    model, x, y = ensemble() if noisy else still()
    eps = EPS if noisy else STILL_EPS
    rows: list[dict[str, Any]] = []
    correct: dict[str, Tensor] = {}
    for library, name, attack in contenders() if noisy else still_contenders():
        started = time.perf_counter()
        points = attack(model, x, y, eps, derive_generator(SEED, "bench", library, name))
        seconds = time.perf_counter() - started
        scores = score(
            model,
            points,
            y,
            draws=model.draws,
            resubmissions=RESUBMISSIONS,
            seed=SEED,
            keys=("bench", "ladder"),
        )
        correct[name] = scores.correct
        rows.append(
            {
                "library": library,
                "attack": name,
                "seconds": round(seconds, 3),
                "robust_accuracy": scores.accuracy,
                "ci95": wilson(scores.accuracy * len(y), len(y)),
                "single_draw_accuracy": scores.single_draw_accuracy,
            }
        )
    ours = [row for row in rows if row["library"] == "squint"]
    matches = []
    for theirs in rows[len(ours) :]:
        enough = next((row for row in ours if row["robust_accuracy"] <= theirs["robust_accuracy"]), None)
        match = {"theirs": theirs["attack"], "ours": enough and enough["attack"]}
        if enough is not None:
            match["ratio"] = enough["seconds"] / theirs["seconds"]
            match["difference_ci95"] = paired_bootstrap(
                correct[enough["attack"]], correct[theirs["attack"]], seed=SEED
            )
        matches.append(match)
    return {
        "benchmark": f"beginning of the ladder against AutoAttack {'rand' if noisy else 'standard'}",
        "model": f"3 x small_cnn, width 12, 2/3/4-bit weights, 1-bit stochastic input, {DRAWS} draws"
        if noisy
        else "the deterministic network of tests/attacks/weights",
        "eps": format_fraction(eps),
        "n": len(y),
        "seed": SEED,
        "resubmissions": RESUBMISSIONS,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "torchattacks": torchattacks.__version__},
        "rows": rows,
        "matches": matches,
    }


def main(output: Path | None = None) -> None:
    """Print the tables, and write the rows where `output` says."""
    for noisy in (True, False):
        found = measure(noisy)
        print(f"\n{found['benchmark']}, {found['n']} digits, eps {found['eps']}, {found['model']}")
        for row in found["rows"]:
            low, high = row["ci95"]
            print(
                f"  {row['library']:<13} {row['attack']:<46} {row['seconds']:8.2f} s   "
                f"{row['robust_accuracy']:6.1%} [{low:.1%}, {high:.1%}]"
            )
        for match in found["matches"]:
            if match["ours"] is None:
                print(f"  no budget of ours reaches {match['theirs']}")
            else:
                print(f"  {match['theirs']}: reached by {match['ours']} in {match['ratio']:.2f} of the time")
        if output is not None:
            place = output if noisy else output.with_name(f"{output.stem}-deterministic{output.suffix}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(output_option("Seconds to the same robust accuracy, against AutoAttack."))
