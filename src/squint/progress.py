"""Progress bars for the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from squint.study.progress import Bar, Silence


class _RichBar:
    """Draws nothing before the first piece of work: an error that comes earlier stays one line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def start(self, title: str, total: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task(title, total=total, note="")

    def move(self, done: int, note: str = "") -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, note=note)


@contextmanager
def bars(console: Console, quiet: bool) -> Iterator[Bar]:
    """Show one line per piece of work, with time spent and time left; nothing when quiet."""
    if quiet:
        yield Silence()
        return
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=console)
    try:
        yield _RichBar(progress)
    finally:
        if progress.live.is_started:
            progress.stop()
