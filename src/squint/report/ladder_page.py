"""Ladder records' details as tables of the page."""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from squint.report.results import Results
from squint.report.table import percent


def ladder_fragment(results: Results) -> Markup | None:
    """Return the ladder records' details as tables of the page, or None where there is no such record."""
    records = [record for record in results.records if record.ladder is not None]
    if not records:
        return None
    draws = sorted({e.draws for r in records if r.ladder is not None for e in r.ladder.sweep})
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, time=_time)
    template = resources.files("squint.report").joinpath("ladder_details.html.j2").read_text(encoding="utf-8")
    return Markup(environment.from_string(template).render(results=results, records=records, draws=draws))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:.3g} ms"
