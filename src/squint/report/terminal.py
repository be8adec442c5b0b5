"""The comparison as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from squint.report.costs import cost_rows, cost_table
from squint.report.results import parse_results
from squint.report.table import (
    PERSISTENT_QUERIES,
    TableRow,
    flag_groups,
    headline_of,
    interval,
    percent,
    rows_of,
)


def print_table(results: dict[str, Any], console: Console) -> None:
    """Print the comparison, costs, headline and every red flag; laid out for 80 columns.

    A budget or a number of images that all rows share is said once, above the table: more room for names.

    Args:
        results: the parsed contents of `results.json`.
        console: where it is printed.

    Raises:
        InputError: on a value that is not allowed.
    """
    parsed = parse_results(results)
    rows = rows_of(parsed)
    costs = cost_rows(parsed, rows)
    measured = [row for row in rows if row.record is not None]
    presets = list(dict.fromkeys(row.preset for row in measured))
    budget = _shared(f"{row.preset}, {row.budget.replace(' ', '')}" for row in measured)
    count = _shared(_whole(row.n) for row in measured)
    attack = next((row.record.attack_name for row in measured if row.record), parsed.headline_attack)
    images = f", n = {count}" if count else ""
    images += "" if parsed.images == "images" else f", {parsed.images}"
    spent = f"{budget} (steps×eot×restarts)" if budget else "; ".join(presets) or "nothing measured"
    console.print(Text(f"Under {attack} at eps {parsed.headline_eps}{images}: {spent}"))
    console.print(_comparison(rows, with_budget=budget is None, with_count=count is None))
    if costs:
        console.print(Text("What it costs, in the same order"))
        console.print(cost_table(costs))
    if parsed.left:
        console.print(Text(f"Left for later (--resume): {'; '.join(parsed.left)}"))
    headline = headline_of(parsed, rows)
    console.print(Text(f"{headline.sentence} {headline.verdict.upper()}."))
    for systems, flag in flag_groups(rows):
        console.print(Text(f"  {systems}: {flag.message}"))


def _comparison(rows: Sequence[TableRow], *, with_budget: bool, with_count: bool) -> Table:
    presets = {row.preset for row in rows if row.record is not None}
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("system", overflow="fold", min_width=8)
    table.add_column("tier", justify="center")
    table.add_column("clean\n%", justify="right", no_wrap=True)
    table.add_column("robust %\n[95 % interval]", justify="right", no_wrap=True)
    table.add_column("1 draw\n%", justify="right", no_wrap=True)
    table.add_column(f"pers. %\nq={PERSISTENT_QUERIES}", justify="right", no_wrap=True)
    table.add_column("S", justify="right", no_wrap=True)
    if with_budget:
        table.add_column("steps×eot\n×restarts", overflow="fold")
    if with_count:
        table.add_column("n", justify="right", no_wrap=True)
    table.add_column("trusted", no_wrap=True, min_width=len("UNTRUSTED"))
    for row in rows:
        budget = row.budget.replace(" ", "") + (f"\n{row.preset}" if len(presets) > 1 else "")
        cells = [
            row.title,
            row.tier,
            percent(row.clean),
            f"{percent(row.robust)} {interval(row.ci95)}".strip(),
            percent(row.single_draw),
            percent(row.persistent),
            _whole(row.draws),
            *([budget] if with_budget else ()),
            *([_whole(row.n)] if with_count else ()),
            row.verdict,
        ]
        style = "" if row.trusted or row.record is None else "yellow"
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def _shared(values: Iterable[str]) -> str | None:
    """Return what all values are, or None where they differ or there are none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
