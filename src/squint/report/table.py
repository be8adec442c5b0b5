"""The comparison's rows, the headline sentence and the findings, for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from squint.report.fields import Interval
from squint.report.results import PRESET_NAMES, Flag, Record, Results, parse_results

TIERS = {
    "A": "no input gradients in training",
    "B": "penalises the input gradient, which to first order is adversarial training "
    "with small perturbations",
    "C": "trains at points found by ascent: adversarial training",
}
PERSISTENT_QUERIES = "10"
_NORMS = {"linf": "L∞", "l2": "L2"}


@dataclass(frozen=True)
class TableRow:
    """One system of the comparison. Accuracies are fractions; `record` is None if it was not attacked."""

    system: str
    title: str
    tier: str
    clean: float | None = None
    robust: float | None = None
    ci95: Interval | None = None
    single_draw: float | None = None
    persistent: float | None = None
    draws: int | None = None
    budget: str = "–"
    preset: str = "not evaluated"
    n: int | None = None
    trusted: bool = False
    flags: tuple[Flag, ...] = ()
    reasons: tuple[str, ...] = ()
    record: Record | None = None

    @property
    def verdict(self) -> str:
        """`trusted` or `UNTRUSTED`, or a dash where nothing was measured."""
        if self.record is None:
            return "–"
        return "trusted" if self.trusted else "UNTRUSTED"


@dataclass(frozen=True)
class Headline:
    """The sentence on top of a report, its verdict, and why the figure is not to be trusted."""

    system: str | None
    sentence: str
    verdict: str
    trusted: bool
    reasons: tuple[str, ...]


def percent(value: float | None) -> str:
    """Return a fraction as a percentage with one decimal and no sign, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval(ci: Interval | None) -> str:
    """Return an interval of fractions in percent with one decimal, or nothing."""
    return "" if ci is None else f"[{percent(max(ci[0], 0.0))}, {percent(min(ci[1], 1.0))}]"


def norm_name(norm: str) -> str:
    """Return a norm as people write it."""
    return _NORMS.get(norm.lower(), norm)


def _strength(record: Record) -> tuple[int, float]:
    """Order records by preset, strongest last, and within one preset the worst case last."""
    presets = list(PRESET_NAMES)
    place = presets.index(record.preset) if record.preset in presets else -1
    return place, -record.robust_accuracy


def select(results: Results, system: str, radius: float, attack: str | None = None) -> Record | None:
    """Return a system's record at a radius, from its strongest preset; the headline attack's by default."""
    attack = attack or results.headline_attack
    found = [
        r
        for r in results.records
        if r.system == system and r.attack == attack and math.isclose(r.radius, radius, abs_tol=1e-9)
    ]
    return max(found, key=_strength) if found else None


def rows_of(results: Results) -> list[TableRow]:
    """Return the comparison's rows, the highest robust accuracy first and those without one last."""
    tiers = {s.name: s.tier for s in results.systems}
    rows = []
    for name in results.names():
        record = select(results, name, results.headline_radius)
        tier = tiers.get(name, "–")
        if record is None:
            rows.append(TableRow(name, results.title(name), tier))
            continue
        rows.append(
            TableRow(
                system=name,
                title=results.title(name),
                tier=record.tier or tier,
                clean=record.clean_accuracy,
                robust=record.robust_accuracy,
                ci95=record.ci95,
                single_draw=record.single_draw_accuracy,
                persistent=record.persistent.get(PERSISTENT_QUERIES, record.persistent_accuracy),
                draws=record.draws,
                budget=record.budget,
                preset=record.preset_name,
                n=record.n,
                trusted=record.trusted,
                flags=record.flags,
                reasons=record.reasons,
                record=record,
            )
        )
    return sorted(rows, key=lambda row: -math.inf if row.robust is None else row.robust, reverse=True)


def comparison_table(results: dict[str, Any]) -> list[TableRow]:
    """Return one row per system at the headline attack and eps, the highest robust accuracy first.

    Args:
        results: the parsed contents of `results.json`.

    Raises:
        InputError: on a value that is not allowed.
    """
    return rows_of(parse_results(results))


def headline_of(results: Results, rows: Sequence[TableRow]) -> Headline:
    """Return the headline, of the system that the file names, else of the best row, trusted ones first."""
    setting = f"{results.headline_attack} at eps {results.headline_eps}"
    measured = [row for row in rows if row.record is not None]
    named = [row for row in measured if row.system == results.headline_system]
    chosen = named or [row for row in measured if row.trusted] or measured
    if not chosen:
        return Headline(
            None, f"No system has been evaluated under {setting} yet.", "not evaluated", False, ()
        )
    row = chosen[0]
    record = row.record
    assert record is not None
    assert row.ci95 is not None
    low, high = percent(max(row.ci95[0], 0.0)), percent(min(row.ci95[1], 1.0))
    sentence = (
        f"{row.title} (tier {row.tier}) classifies {percent(row.robust)}\u00a0% of {record.n:,} "
        f"{results.images} correctly under {record.attack_name} at {norm_name(record.norm)} eps {record.eps} "
        f"({record.preset_name}; 95\u00a0% interval {low} to {high}\u00a0%), "
        f"and {percent(row.clean)}\u00a0% without attack."
    )
    return Headline(row.system, sentence, "trusted" if row.trusted else "UNTRUSTED", row.trusted, row.reasons)


@dataclass(frozen=True)
class FlagGroup:
    """One finding and the systems it was made on."""

    titles: tuple[str, ...]
    kind: str
    message: str
    measured: str

    def systems(self, measured_systems: int) -> str:
        """Return the systems in words: all that were measured by that name."""
        if len(self.titles) == measured_systems > 1:
            return "every system"
        return "; ".join(self.titles)


def flag_groups(rows: Sequence[TableRow]) -> list[tuple[str, FlagGroup]]:
    """Return every finding once, with the systems it speaks against; rows that are trusted have none.

    Args:
        rows: of the comparison.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    measured = [row for row in rows if row.record is not None]
    for row in measured:
        reasons = [Flag("no flag", reason, "") for reason in row.reasons] if not row.flags else row.flags
        for flag in () if row.trusted else reasons:
            found.setdefault((flag.kind, flag.message, flag.measured), []).append(row.title)
    groups = [FlagGroup(tuple(titles), *key) for key, titles in found.items()]
    return [(group.systems(len(measured)), group) for group in groups]
