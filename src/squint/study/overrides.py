"""What a person writes on the command line, over a recipe or into options; mistakes become one line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import tyro
from pydantic.dataclasses import is_pydantic_dataclass
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from squint._checks import InputError
from squint.study.config import RecipeConfig
from squint.study.recipes import checked

Options = TypeVar("Options")


@dataclass(frozen=True)
class RunOptions:
    """Where a study goes."""

    output: str | None = None
    """Run folder; default runs/NAME."""
    resume: bool = False
    """Continue the run in this folder."""
    overwrite: bool = False
    """Replace the run in this folder."""
    seeds: tuple[int, ...] = ()
    """Run the study once per seed and compare its systems; default for ablations: 0 1 2."""
    only: tuple[str, ...] = ()
    """Do only these systems of the recipe; --resume without it goes on with the others."""


_FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True)
class _Study:
    options: Annotated[RunOptions, _FLAT]
    config: Annotated[RecipeConfig, _FLAT]


def overridden(recipe: RecipeConfig, words: Sequence[str], program: str) -> tuple[RunOptions, RecipeConfig]:
    """Return the run's options and the recipe with the fields that `words` set; `--help` exits.

    Raises:
        squint.InputError: one line that names every option that is not known or not allowed.
    """
    chosen = parsed(_Study, words, program, _Study(RunOptions(), recipe), recipe.description)
    plain = cast(Mapping[str, Any], chosen.config)
    return chosen.options, checked(plain, "")


def parsed(
    kind: type[Options],
    words: Sequence[str],
    program: str,
    default: Options | None = None,
    description: str | None = None,
) -> Options:
    """Return the options in `words`; recipes inside are plain data that nobody has checked yet.

    Raises:
        squint.InputError: one line that names the option and what is allowed.
    """
    captured = io.StringIO()
    # Whole, with its examples, which tyro leaves out of what it reads from a docstring.
    extra: dict[str, Any] = {"description": inspect.cleandoc(description or kind.__doc__ or "")}
    if default is not None:
        extra["default"] = default
    try:
        with contextlib.redirect_stderr(captured):
            chosen: Options = tyro.cli(kind, prog=program, args=list(words), registry=_unchecked(), **extra)
            return chosen
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(one_line(captured.getvalue(), program)) from None


def _unchecked() -> ConstructorRegistry:
    """Return rules that leave a checked dataclass a plain dict.

    The recipe is then checked as a whole, in the one place where YAML is checked too: every error is named,
    with its full place.
    """
    registry = ConstructorRegistry()
    asking = False

    @registry.struct_rule
    def plain(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking or not (isinstance(info.type, type) and is_pydantic_dataclass(info.type)):
            return None
        asking = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asking = False
        return (
            dataclasses.replace(spec, instantiate=dict) if isinstance(spec, StructConstructorSpec) else None
        )

    return registry


_BAD_NUMBER = re.compile(
    r"Error parsing (?P<option>--\S+): (?:invalid literal for int\(\) with base 10|"
    r"could not convert string to (?P<real>float)): (?P<value>'.*')"
)
_BAD_UNION = re.compile(
    r"Error parsing (?P<option>--\S+): no type matching (?P<kinds>\S+) could be instantiated from "
    r"\[(?P<value>'.*?')\]"
)
_KINDS = {"{None}": "None", "INT": "a whole number", "FLOAT": "a number", "STR": "text"}
_BAD_CHOICE = re.compile(
    r"invalid choice (?P<value>'.*?') for argument '(?P<option>--\S+)'\. Expected one of \((?P<words>.*?),?\)"
)
_UNKNOWN = re.compile(r"Unrecognized options: (?P<words>.*)")
_SUGGESTED = re.compile(r"--[\w.-]+")


def one_line(box: str, program: str) -> str:
    """Return tyro's boxed message as one line: option, value, what is allowed."""
    # The box has a title in its frame or, where the terminal draws no lines, above a first ruler of dashes.
    rows = [row.strip(" │") for row in box.splitlines()]
    framed = any(row.startswith("╭") for row in rows)
    rows = [row for row in rows if row and row[0] not in "╭╰"]
    parts = " ".join("\n" if set(row) <= {"─", "-"} else row for row in rows).split("\n")
    message = parts[0 if framed else min(1, len(parts) - 1)].strip()
    if match := _BAD_NUMBER.search(message):
        kind = "a number" if match["real"] else "a whole number"
        return f"{match['option']} is {match['value']}; allowed: {kind}"
    if match := _BAD_UNION.search(message):
        kinds = " or ".join(_KINDS.get(kind, kind) for kind in match["kinds"].split("|"))
        return f"{match['option']} is {match['value']}; allowed: {kinds}"
    if match := _BAD_CHOICE.search(message):
        return f"{match['option']} is {match['value']}; allowed: {match['words'].replace(chr(39), '')}"
    if match := _UNKNOWN.search(message):
        words = [word for word in match["words"].split(", ") if word.startswith("-")]
        hint = _SUGGESTED.search(next((part for part in parts if "Perhaps you meant" in part), ""))
        unknown = (
            f"unknown option {', '.join(words)}" if words else f"{match['words']!r} belongs to no option"
        )
        return f"{unknown}{f' (did you mean {hint[0]!r}?)' if hint else ''}; see {program} --help"
    return f"{message}; see {program} --help"
