"""Peak memory of a training step and of an attack's gradient against batch, members, draws and chunk.

Every case runs in a process of its own, whose peak resident memory is read before and after. Run as
`python -m benchmarks.memory --output results/bench/memory.json`; exit code 1 where the bound does not hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from squint import Ensemble, ObjectiveConfig, attacks, calibrate, models, quantize
from squint.evaluation.frozen import frozen
from squint.training import EnsembleObjective


@dataclass(frozen=True)
class Case:
    """What is measured: `chunk` None holds all draws of the attack's gradient at once.

    "attack" is one on the network as it is, "ladder" on the copy that the ladder attacks (integer codes).
    """

    work: str
    batch: int
    members: int
    draws: int
    chunk: int | None = None


CASES = (
    Case("training", 32, 1, 1),
    Case("training", 64, 1, 1),
    Case("training", 32, 3, 1),
    Case("training", 32, 3, 2),
    Case("attack", 4, 1, 1),
    Case("attack", 4, 3, 1),
    Case("attack", 4, 3, 4),
    Case("attack", 4, 3, 16),
    Case("attack", 8, 3, 16),
    Case("attack", 4, 3, 64),
    Case("attack", 4, 3, 64, 16),
    Case("attack", 4, 3, 64, 4),
    Case("ladder", 4, 3, 16),
    Case("ladder", 4, 3, 64, 4),
)
"""ResNet-8 of width 16 on 32 x 32 images."""

CHUNKED, ALL_AT_ONCE = Case("attack", 4, 3, 64, 4), Case("attack", 4, 3, 4)
BOUND = 1.5
"""EOT 64 on three members, four draws at once, may take that many times the peak of EOT 4."""


def _peak() -> int:
    """Return this process's peak resident memory in bytes (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _work(case: Case, ens: Ensemble) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(case.batch, 3, 32, 32, generator=generator)
    y = torch.randint(10, (case.batch,), generator=generator)
    if case.work != "training":
        model = frozen(ens.eval()) if case.work == "ladder" else ens
        attacks.fgsm(model, x, y, eps=5 / 255, eot=case.draws, chunk=case.chunk, generator=generator)
        return
    loss = ObjectiveConfig(ensemble=1.0, conditional_redundancy=0.1, information_warmup=0.0)
    terms = EnsembleObjective(loss, case.draws, 1)(ens.train(), x, y, 1)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())


def measured(case: Case) -> int:
    """Return the bytes that the case adds to the peak of this process, once everything is loaded."""
    nets: list[nn.Module] = [
        quantize(models.resnet8(), bits, 4, 2, activation_width=0.0) for bits in (2, 3, 4)[: case.members]
    ]
    for net in nets:
        calibrate(net, torch.rand(4, 3, 32, 32))
    ens = Ensemble(nets)
    _work(Case(case.work, 2, case.members, 1), ens)
    before = _peak()
    _work(case, ens)
    return _peak() - before


def measured_apart(case: Case) -> float:
    """Return the MiB that the case adds, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(asdict(case))]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) / 2**20


def record(peaks: dict[Case, float]) -> dict[str, Any]:
    """Return what was measured as plain data, with the bound and whether it holds."""
    ratio = peaks[CHUNKED] / peaks[ALL_AT_ONCE]
    return {
        "benchmark": "peak memory that a training step or an attack's gradient adds",
        "model": "resnet8 of width 16, 2/3/4-bit weights, 4-bit activations, 2-bit stochastic input, 32 x 32",
        "device": "cpu",
        "threads": 1,
        "versions": {"torch": torch.__version__, "numpy": version("numpy")},
        "rows": [asdict(case) | {"peak_mib": round(peak, 1)} for case, peak in peaks.items()],
        "bound": {
            "case": asdict(CHUNKED),
            "against": asdict(ALL_AT_ONCE),
            "ratio": round(ratio, 3),
            "allowed": BOUND,
            "holds": ratio <= BOUND,
        },
    }


def main(output: Path | None = None) -> int:
    """Print the table, write it where asked for, and return 0 where the bound holds."""
    print("work      batch members draws at once   peak MiB   MiB per image, member and draw at once")
    peaks: dict[Case, float] = {}
    for case in CASES:
        peaks[case] = added = measured_apart(case)
        held = min(case.draws, case.chunk or case.draws)
        each = added / (case.batch * case.members * held)
        print(
            f"{case.work:<9} {case.batch:5d} {case.members:7d} {case.draws:5d} {held:7d}"
            f"   {added:8.0f}   {each:6.2f}",
            flush=True,
        )
    found = record(peaks)
    bound = found["bound"]
    print(f"EOT 64 with chunk 4 takes {bound['ratio']:.2f} times what EOT 4 takes; allowed: {BOUND:g}")
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if bound["holds"] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(1)
        print(measured(Case(**json.loads(options.case))))
    else:
        sys.exit(main(options.output))
