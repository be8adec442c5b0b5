"""A whole `standard` ladder on one small trained stochastic network, recorded with its evidence.

`python -m benchmarks.standard --output FOLDER` trains two networks on digits, a stochastic one and an
undefended one of the same shape (the source of the noise control), climbs the ladder and writes
`records.json` and `evidence/stochastic.npz`. A stopped run goes on from `FOLDER/ladder`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn

import squint
from squint.evaluation.ladder_report import ladder_report
from squint.evaluation.records import RobustnessReport

IMAGES = 100
EPS = 32 / 255
DRAWS = 4
SEED = 0


def networks(seed: int = SEED, epochs: int = 10) -> tuple[squint.Ensemble, nn.Module]:
    """Return a stochastic network, 2-bit input and 4-bit weights, and a full-precision one of its shape."""
    data = squint.data.load("digits").train
    trained = []
    for noisy in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            plain: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        if noisy:
            plain = squint.quantize(plain, 4, 4, 2, activation_width=0.0, learn_range=False)
        config = squint.TrainConfig(
            epochs=epochs,
            batch_size=64,
            learning_rate=0.006,
            draws=2 if noisy else 1,
            seed=seed,
            objective=squint.ObjectiveConfig(ensemble=1.0, agreement=10.0 if noisy else 0.0),
            evaluate_every=epochs,
            accelerator="cpu",
        )
        ens = squint.Ensemble([plain], draws=DRAWS if noisy else 1)
        squint.fit(ens, data, config)
        trained.append(ens.eval().requires_grad_(False))
    return trained[0], trained[1].members[0]


def recorded(folder: Path, images: int = IMAGES, eps: float = EPS) -> RobustnessReport:
    """Return the report of the whole ladder; the worst examples go to the folder."""
    model, undefended = networks()
    return ladder_report(
        model,
        squint.data.load("digits").test,
        [eps],
        "standard",
        system="stochastic",
        draws=DRAWS,
        resubmissions=None,
        seed=SEED,
        limit=images,
        batch_size=100,
        tier="A",
        sources={"undefended": undefended},
        folder=folder / "ladder",
        progress=lambda done, total, note: print(f"{done}/{total} {note}", flush=True),
        evidence=folder / "evidence" / "stochastic.npz",
    )


def main() -> None:
    """Run, write the records and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    report = recorded(arguments.output, arguments.images)
    text = json.dumps([record.to_json() for record in report.records], indent=1)
    (arguments.output / "records.json").write_text(text + "\n", encoding="utf-8")
    print(report)


if __name__ == "__main__":
    main()
