"""What each system costs beside what it withstands: the second table of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from squint.report.results import Results, System
from squint.report.table import TableRow, percent, select

_SEED = "pgd"


@dataclass(frozen=True)
class CostRow:
    """One system: its accuracies as fractions, clean, under seed protocol and headline attack."""

    title: str
    tier: str
    clean: float | None
    seed_protocol: float | None
    headline: float | None
    system: System


def cost_rows(results: Results, rows: Sequence[TableRow]) -> list[CostRow]:
    """Return the systems whose costs are known, in the order of the comparison's rows.

    Args:
        results: of the run.
        rows: of the comparison.
    """
    known = {system.name: system for system in results.systems if system.bit_operations is not None}
    found = []
    for row in rows:
        if row.system in known:
            seed = select(results, row.system, results.headline_radius, _SEED)
            protocol = seed.robust_accuracy if seed is not None and seed.preset == "seed" else None
            found.append(CostRow(row.title, row.tier, row.clean, protocol, row.robust, known[row.system]))
    return found


def short_count(value: float | None) -> str:
    """Return a count in three digits and thousands, millions and so on, or a dash."""
    if value is None:
        return "–"
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Return a time as people say it: seconds below two minutes, minutes below two hours, then hours."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cost_table(found: Sequence[CostRow]) -> Table:
    """Return the table for the terminal, laid out for 80 columns and more."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("system", overflow="fold", min_width=8)
    heads = (
        "clean\n%",
        "seed\n%",
        "head-\nline %",
        "bit\nops",
        "bits\nstored",
        "para-\nmeters",
        "train-\ning",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("training\ncompute", no_wrap=True)
    for row in found:
        system = row.system
        cells = [
            row.title,
            percent(row.clean),
            percent(row.seed_protocol),
            percent(row.headline),
            short_count(system.bit_operations),
            short_count(system.stored_bits),
            short_count(system.parameters),
            duration(system.training_seconds),
            system.compute,
        ]
        table.add_row(*(Text(cell) for cell in cells))
    return table
