"""Where a study reports its progress."""

from __future__ import annotations

from typing import Protocol


class Bar(Protocol):
    """Takes progress; the command line draws it."""

    def start(self, title: str, total: int) -> None:
        """Begin a new bar."""

    def move(self, done: int, note: str = "") -> None:
        """Move the present bar to `done`, with a short note behind it."""


class Silence:
    """No progress bars."""

    def start(self, title: str, total: int) -> None:
        """Do nothing."""

    def move(self, done: int, note: str = "") -> None:
        """Do nothing."""
