"""One self-contained page from a run folder: nothing is fetched, nothing is run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from squint._files import write_bytes
from squint.report.costs import cost_rows, duration, short_count
from squint.report.curves import accuracy_figure, losses_figure, plane_figure
from squint.report.detection import Detection, read_detection
from squint.report.detection_figures import histogram_figure, rejection_figure, roc_figure
from squint.report.detection_page import detection_fragment
from squint.report.images import examples_figure, votes_of
from squint.report.ladder_page import ladder_fragment
from squint.report.pareto import pareto_figure
from squint.report.pareto_page import pareto_fragment
from squint.report.plane_page import plane_csv, plane_fragment
from squint.report.run import Run, read_run
from squint.report.style import FigureFiles
from squint.report.table import (
    PERSISTENT_QUERIES,
    TIERS,
    Headline,
    TableRow,
    flag_groups,
    headline_of,
    interval,
    norm_name,
    percent,
    rows_of,
)

MOST_EXAMPLES = 8
"""Systems whose images are shown: the headline's, then those that withstand most."""


def write_report(run: Path) -> Path:
    """Return the path of `report.html`, written beside `figures/*.png`, `figures/*.svg` and `plane.csv`.

    The page is a function of `results.json`, `config.yaml`, `log.jsonl`, `examples/*.npz`, and of what
    `squint profile` (`plane.json`) and `squint detect` (`detection.json`) added; parts that the run does not
    have are left out with a sentence that says so. Every file is replaced in one step.

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
    figures["pareto"] = pareto_figure(content.results, rows)
    detection = read_detection(run)
    figures |= _detection_figures(detection, content)
    headline = headline_of(content.results, rows)
    examples = _examples(content, [headline.system, *(row.system for row in rows)])
    html = _page(content, rows, headline, figures, examples, detection)
    drawn = [figure for figure in figures.values() if figure is not None]
    for figure in drawn + [entry["figure"] for entry in examples]:
        write_bytes(run / "figures" / f"{figure.name}.svg", figure.svg)
        write_bytes(run / "figures" / f"{figure.name}.png", figure.png)
    if content.results.plane:
        write_bytes(run / "plane.csv", plane_csv(content.results).encode("utf-8"))
    path = run / "report.html"
    write_bytes(path, html.encode("utf-8"))
    return path


def _examples(content: Run, order: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return the image grids with their votes in words, by the order of systems that is given."""
    names = sorted(content.examples, key=lambda name: order.index(name) if name in order else len(order))
    found = []
    for name in names[:MOST_EXAMPLES]:
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
    detection: Detection | None,
) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=percent,
        interval=interval,
        norm=norm_name,
        whole=_whole,
        count=short_count,
        points=lambda value: f"{100 * value:+.1f}",
        duration=duration,
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
        ladder=ladder_fragment(content.results),
        detection=detection_fragment(detection, content.results),
        pareto=pareto_fragment(content.results, rows),
        costs=cost_rows(content.results, rows),
        flags=flag_groups(rows),
        examples=examples,
        kept=len(content.examples),
        tiers=TIERS,
        queries=PERSISTENT_QUERIES,
        presets=list(dict.fromkeys(record.preset_name for record in measured)),
        attack=next((record.attack_name for record in measured), content.results.headline_attack),
    )


def _detection_figures(detection: Detection | None, content: Run) -> dict[str, FigureFiles | None]:
    draw = {"roc": roc_figure, "scores": histogram_figure, "rejection": rejection_figure}
    if detection is None:
        return dict.fromkeys(draw)
    return {name: figure(detection, content.results) for name, figure in draw.items()}


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
