"""Typed reading of JSON objects in which every error says where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from squint._checks import InputError, check_number, printable, shown

Interval = tuple[float, float]
_SLACK = 1e-6  # rounding of an interval's ends at 0 and 1


class Fields:
    """Typed reading of one JSON object; every error names the file, the place and what is allowed."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise InputError(f"{where} is {type(data).__name__}; allowed: a JSON object")
        self.data: dict[str, Any] = data
        self.where = where

    def _get(self, key: str) -> Any:
        if key not in self.data:
            raise InputError(f"{self.where} has no {key!r}; needed in this file")
        return self.data[key]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string, characters that would steer a terminal or break an SVG replaced."""
        value = self._get(key) if default is None else self.data.get(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {key} is {shown(value)}; allowed: text")
        return printable(value)

    def number(self, key: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number in [low, high]."""
        value: float = check_number(f"{self.where}: {key}", self._get(key), low, high)
        return value

    def optional_number(self, key: str, low: float = 0.0, high: float = math.inf) -> float | None:
        """Return a finite number in [low, high], or None where the file has null or nothing."""
        return None if self.data.get(key) is None else self.number(key, low, high)

    def whole(self, key: str) -> int:
        """Return a whole number that is not negative."""
        return int(check_number(f"{self.where}: {key}", self._get(key), 0, whole=True))

    def optional_whole(self, key: str) -> int | None:
        """Return a whole number that is not negative, or None where the file has null or nothing."""
        return None if self.data.get(key) is None else self.whole(key)

    def interval(self, key: str, low: float = -_SLACK, high: float = 1 + _SLACK) -> Interval:
        """Return two finite numbers, the lower one first."""
        value = self._get(key)
        if not isinstance(value, list) or len(value) != 2:
            raise InputError(f"{self.where}: {key} is {shown(value)}; allowed: [lower, upper]")
        a, b = (float(check_number(f"{self.where}: {key}", v, low, high)) for v in value)
        if a > b:
            raise InputError(f"{self.where}: {key} is {shown(value)}; allowed: the lower end first")
        return a, b

    def optional_interval(self, key: str, low: float = -_SLACK, high: float = 1 + _SLACK) -> Interval | None:
        """Return an interval, or None where the file has null or nothing."""
        return None if self.data.get(key) is None else self.interval(key, low, high)

    def objects(self, key: str) -> Sequence[Fields]:
        """Return the objects of a list, each knowing its place; none where the file has no such list."""
        value = self.data.get(key) or []
        if not isinstance(value, list):
            raise InputError(f"{self.where}: {key} is {type(value).__name__}; allowed: a list of objects")
        return [Fields(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(value)]

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object's items; none where the file has null or nothing."""
        return Fields(self.data.get(key) or {}, f"{self.where}: {key}").data

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of names as one may print them; none where the file has null or nothing."""
        value = self.data.get(key) or []
        if not isinstance(value, list):
            raise InputError(f"{self.where}: {key} is {type(value).__name__}; allowed: a list of names")
        return tuple(printable(str(item)) for item in value)
