"""Fair timing: the alternatives take turns, and each is judged by its median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    tasks: Mapping[str, Callable[[], object]], *, repeats: int = 15, warmup: int = 2
) -> dict[str, float]:
    """Return each task's median time in milliseconds; tasks alternate, so that drift hits all alike."""
    for _ in range(warmup):
        for task in tasks.values():
            task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, goal: str, rows: list[tuple[str, float, str, float]]) -> None:
    """Print a table of (name, ours, what it is compared with, theirs) in milliseconds with the ratio."""
    print(f"\n{title}  (goal: {goal})")
    for name, ours, other, theirs in rows:
        print(f"  {name:<52} {ours:9.2f} ms   {other:<40} {theirs:9.2f} ms   ratio {ours / theirs:5.2f}")
