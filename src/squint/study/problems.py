"""What is wrong with a recipe, in words: place, value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squint._checks import nearest, shown
from squint.study.config import AttackConfig, MemberConfig, RecipeConfig, SystemConfig
from squint.training import ObjectiveConfig, TrainConfig

_INSIDE = {
    "train": TrainConfig,
    "attack": AttackConfig,
    "systems": SystemConfig,
    "members": MemberConfig,
    "objective": ObjectiveConfig,
}


def fields_at(path: tuple[str | int, ...]) -> list[str]:
    """Return the names of the fields that are allowed at a place of a recipe."""
    kind: Any = RecipeConfig
    named = False
    for part in path:
        # What follows `systems` and `members` is a system's name or a member's number.
        named, before = part in ("systems", "members") and not named, named
        if not before:
            kind = _INSIDE.get(str(part), kind)
    return list(kind.__dataclass_fields__)


def problem(error: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors as place, value and what is allowed."""
    *path, last = error["loc"] or ("recipe",)
    place = ".".join(str(part) for part in (*path, last))
    if error["type"] == "unexpected_keyword_argument":
        return f"unknown key {place}{nearest(str(last), fields_at(tuple(path)))}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] != "value_error":
        return f"{place} is {_short(error['input'])}; allowed: {message}"
    # Our own checks say what is allowed; those of a whole section also name the field.
    if isinstance(error["input"], str | int | float | list | tuple | None) and "; allowed: " in message:
        return f"{place} is {_short(error['input'])}; allowed: {message.split('; allowed: ', 1)[1]}"
    return message if place in ("recipe", "train") else f"{place}: {message}"


def _short(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
