"""Defences that fell, each through the whole `standard` evaluation: what is left of them, and what is said.

`python -m benchmarks.graveyard --output FOLDER` trains the small networks of `tests/evaluation/graveyard` on
digits, attacks each with PGD-20 on its own gradient, one draw, as its paper did, and climbs `standard` with
preflight and active tests. FOLDER/records.json is written after each; those that it holds are not run again,
and a stopped one goes on from FOLDER/ladder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.evaluation.graveyard import nets
from torch import nn

from squint import attacks
from squint._files import read_json, write_json
from squint.attacks.gradients import AnyModel
from squint.evaluation import evaluate

IMAGES = 12
Grave = tuple[Callable[[], nn.Module], Callable[[], dict[str, AnyModel]]]


def _parts(pair: nets.RandomPick) -> dict[str, AnyModel]:
    return {f"part {place}": member for place, member in enumerate(pair.members)}


GRAVES: dict[str, Grave] = {
    "zero-gradient": (nets.zero_gradient, dict),
    "binarized": (nets.binarized, dict),
    "k-winners": (nets.k_winners, dict),
    "empir": (nets.empir, lambda: {"mean of members": nets.empir().ensemble}),
    "cross-max": (nets.cross_max, lambda: {"mean of probes": nets.Probes(nets.cross_max())}),
    "random-pair": (nets.random_pair, lambda: _parts(nets.random_pair())),
    "undefended, no grave": (nets.undefended, dict),
}
"""Each defence with the models that transfer tries besides an undefended one, the source of the control."""


def judged(name: str, folder: Path, images: int) -> dict[str, Any]:
    """Return one defence's record, with the accuracy that its paper's attack leaves of the same images."""
    build, sources = GRAVES[name]
    model, (x, y) = build(), nets.images(images)
    generator = torch.Generator().manual_seed(0)
    own = attacks.pgd(model, x, y, eps=nets.EPS, generator=generator)
    report = evaluate(
        model,
        (x, y),
        nets.EPS,
        "standard",
        system=name,
        sources={"undefended": nets.undefended(), **sources()},
        folder=folder / "ladder" / name.split(",")[0],
    )
    record = report.records[0].to_json()
    return {"paper_accuracy": nets.accuracy(model, own), **record}


def main() -> None:
    """Run what is missing, write the records and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--only", choices=list(GRAVES), nargs="+", default=list(GRAVES))
    arguments = parser.parse_args()
    place = arguments.output / "records.json"
    records: list[Any] = list(read_json(place)) if place.exists() else []
    for name in arguments.only:
        if name not in {record["system"] for record in records}:
            records.append(judged(name, arguments.output, arguments.images))
            write_json(place, records)
    for record in records:
        flags = ", ".join(dict.fromkeys(flag["kind"] for flag in record["red_flags"]))
        print(
            f"{record['system']}: its paper's attack {record['paper_accuracy']:.1%}, standard "
            f"{record['robust_accuracy']:.1%}, n={record['n']}, trusted {record['trusted']}: {flags}"
        )


if __name__ == "__main__":
    main()
