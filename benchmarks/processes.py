"""An attack's gradients on all cores: threads of one process, and processes of one thread each.

`python -m benchmarks.processes --output FILE.json` starts itself once per process and way. Each process
computes pooled gradients of the model `cifar10-small` on the copy that attacks run on; the rates of processes
are added up. The ways take turns; no other work should run beside them, but for what `--beside N` starts: N
processes that keep a core busy each, as another program would.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import squint
from squint import zoo
from squint._files import write_json
from squint.attacks.gradients import Units
from squint.attacks.modes import evaluation_mode
from squint.attacks.objectives import objective
from squint.data import collect
from squint.evaluation.frozen import frozen
from squint.study.published import kept_images
from squint.study.systems import environment

DRAWS = 20
GRADIENTS = 4_000
"""Gradients that a process is timed for: some seconds, in which the others run too."""
ROUNDS = 3
SOON = "1000"
"""Looks of a waiting thread before it sleeps: what squint asks of libgomp."""


def main() -> None:
    """Time every way, beside other work where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--beside", type=int, default=0)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(_rate(arguments.one))
        return
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.beside)]
    try:
        _compare(arguments.images, arguments.beside, arguments.output)
    finally:
        for process in busy:
            process.kill()


def _compare(sizes: list[int], beside: int, output: Path | None) -> None:
    """Print a row for every way and number of images, and write them where that is asked for."""
    cores = os.cpu_count() or 1
    rows = []
    for images in sizes:
        ways = {
            "one process, one thread": (1, 1, "ACTIVE"),
            "one process, all threads": (1, cores, "ACTIVE"),
            "one process, all threads, waiting ones sleep": (1, cores, "PASSIVE"),
            "one process, all threads, waiting ones soon sleep": (1, cores, SOON),
            "one process for each core": (cores, 1, "ACTIVE"),
        }
        ms: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, (processes, threads, waiting) in ways.items():
                ms[way].append(_together(images, processes, threads, waiting))
        first = statistics.median(ms["one process, one thread"])
        for way, values in ms.items():
            median = statistics.median(values)
            rows.append({"way": way, "images": images, "ms_per_gradient": median, "speed": first / median})
            print(f"{images:3} images at once, {way:<50} {median:6.3f} ms   speed {first / median:5.2f}")
    if output is not None:
        versions, hardware = environment()
        about = {"model": "cifar10-small", "draws": DRAWS, "rounds": ROUNDS, "cores": cores, "beside": beside}
        write_json(output, {**about, "versions": versions, "hardware": hardware, "rows": rows})


def _together(images: int, processes: int, threads: int, waiting: str) -> float:
    """Return milliseconds for one image's gradient of one draw, of so many processes side by side."""
    words = [sys.executable, "-m", "benchmarks.processes", "--one", str(images)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environ["OMP_NUM_THREADS"] = str(threads)
    environ["GOMP_SPINCOUNT" if waiting == SOON else "OMP_WAIT_POLICY"] = waiting
    started = [
        subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    rates = [float(process.communicate()[0]) for process in started]
    return 1e3 / sum(rates)


def _rate(images: int) -> float:
    """Return gradients per second of this process, its start not counted."""
    model = squint.load("cifar10-small").eval()
    data = kept_images(zoo.resolved("cifar10-small"))
    assert data is not None, "the shipped folder keeps its images"
    x, y = collect(data, images)
    copy = frozen(model)
    units, goal = Units(copy, y, DRAWS, stratified=True), objective("margin", y)
    with evaluation_mode(copy):
        units.gradient(x, goal, 0)
        calls = max(1, GRADIENTS // (images * DRAWS))
        begin = time.perf_counter()
        for call in range(calls):
            units.gradient(x, goal, call)
        return calls * images * DRAWS / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
