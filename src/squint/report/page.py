"""One self-contained page from a run folder: nothing is fetched, nothing is run."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from squint.report.curves import accuracy_figure, losses_figure, plane_figure
from squint.report.images import examples_figure, votes_of
from squint.report.plane_page import plane_csv, plane_fragment
from squint.report.run import Run, read_run
from squint.report.style import FigureFiles
from squint.report.table import (
    PERSISTENT_QUERIES,
    TIERS,
    Headline,
    TableRow,
    headline_of,
    interval,
    norm_name,
    percent,
    rows_of,
)


def write_report(run: Path) -> Path:
    """Return the path of `report.html`, written beside `figures/*.png`, `figures/*.svg` and `plane.csv`.

    The page is a function of `results.json`, `config.yaml`, `log.jsonl` and `examples/*.npz`; parts that the
    run does not have are left out with a sentence that says so. Every file is replaced in one step.

    Args:
        run: the run folder.

    Raises:
        InputError: if there is no `results.json`, or a file is corrupt; the message names the file.
    """
    run = Path(run)
    content = read_run(run)
    figures = {
        "accuracy": accuracy_figure(content.results),
        "losses": losses_figure(content.results, content.epochs),
        "plane": plane_figure(content.results),
    }
    rows = rows_of(content.results)
    headline = headline_of(content.results, rows)
    examples = _examples(content, [headline.system, *(row.system for row in rows)])
    html = _page(content, rows, headline, figures, examples)
    drawn = [figure for figure in figures.values() if figure is not None]
    for figure in drawn + [entry["figure"] for entry in examples]:
        _replace(run / "figures" / f"{figure.name}.svg", figure.svg)
        _replace(run / "figures" / f"{figure.name}.png", figure.png)
    if content.results.plane:
        _replace(run / "plane.csv", plane_csv(content.results).encode("utf-8"))
    path = run / "report.html"
    _replace(path, html.encode("utf-8"))
    return path


def _examples(content: Run, order: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return the image grids with their votes in words, by the order of systems that is given."""
    names = sorted(content.examples, key=lambda name: order.index(name) if name in order else len(order))
    found = []
    for name in names:
        figure = examples_figure(content.results, name, content.examples[name])
        if figure is not None:
            votes = votes_of(content.examples[name], content.results.class_names)
            found.append({"figure": figure, "votes": votes, "members": len(votes[0].members)})
    return found


def _page(
    content: Run,
    rows: Sequence[TableRow],
    headline: Headline,
    figures: dict[str, FigureFiles | None],
    examples: list[dict[str, Any]],
) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=percent,
        interval=interval,
        norm=norm_name,
        whole=_whole,
        duration=_duration,
        data=lambda content: base64.b64encode(content).decode("ascii"),
    )
    template = resources.files("squint.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    measured = [row.record for row in rows if row.record is not None]
    return environment.from_string(template).render(
        results=content.results,
        config=content.config,
        rows=rows,
        headline=headline,
        figures=figures,
        plane=plane_fragment(content.results),
        examples=examples,
        tiers=TIERS,
        queries=PERSISTENT_QUERIES,
        presets=list(dict.fromkeys(record.preset_name for record in measured)),
        attack=next((record.attack_name for record in measured), content.results.headline_attack),
    )


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _duration(seconds: float | None) -> str:
    """Return a time as people say it: seconds below two minutes, minutes below two hours, then hours."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _replace(path: Path, content: bytes) -> None:
    """Write a file under another name beside it, then rename: readers see the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
