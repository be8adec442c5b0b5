"""The table of both image studies in `docs/studies.md` from their records: `python -m benchmarks.studies`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from squint.study.folder import read_results

STUDIES = (Path("results/study-fashion-mnist"), Path("results/study-cifar10"))
SHORTER = {
    "Stochastic ensemble with information term": "Stochastic with information",
    "Stochastic ensemble, no information term": "Stochastic, no information term",
}
HEAD = (
    "| | tier | Fashion: clean | seed protocol | `quick` | CIFAR-10: clean | seed protocol | `quick` "
    "| compute |",
    "|---|---|---|---|---|---|---|---|---|",
)


def table(studies: Sequence[Path] = STUDIES) -> list[str]:
    """Return the lines of the table, the systems in the order of their mean accuracy under `quick`."""
    results = [read_results(study) for study in studies]
    systems = {system["name"]: system for system in results[0]["systems"]}
    rows: list[tuple[float, str]] = []
    for name, system in systems.items():
        cells, worst = [], 0.0
        for each in results:
            plain, ladder = (_record(each, name, attack) for attack in ("pgd", "ladder"))
            low, high = ladder["ci95"]
            worst += ladder["robust_accuracy"]
            cells += [
                f"{100 * plain['clean_accuracy']:.1f} %",
                f"{100 * plain['robust_accuracy']:.1f} %",
                f"{100 * ladder['robust_accuracy']:.1f} % ({100 * low:.0f} to {100 * high:.0f})",
            ]
        title = SHORTER.get(system["title"], system["title"])
        compute = f"{system['training_compute']:.1f}".removesuffix(".0")
        rows.append((-worst, f"| {' | '.join([title, system['tier'], *cells, compute])} |"))
    return [*HEAD, *(row for _, row in sorted(rows, key=lambda pair: pair[0]))]


def _record(results: dict[str, Any], system: str, attack: str) -> dict[str, Any]:
    eps = results["headline_eps"]
    found: dict[str, Any] = next(
        record
        for record in results["records"]
        if (record["system"], record["attack"], record["eps"]) == (system, attack, eps)
    )
    return found


if __name__ == "__main__":
    print("\n".join(table()))
