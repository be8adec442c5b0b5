"""The command line: `squint run|train|attack|report|recipes`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from squint import __version__
from squint._checks import InputError, InputTypeError, check_choice
from squint._files import write_json
from squint.progress import bars
from squint.report import print_table, write_report
from squint.study import load_recipe, recipe_names, run_study
from squint.study.attack import AttackOptions, attack_weights
from squint.study.folder import read_results
from squint.study.overrides import overridden, parsed

USAGE = """\
usage: squint COMMAND ...

Trains, attacks and compares ensembles of quantized networks.

  squint recipes                  list the packaged studies
  squint run RECIPE               the whole study: train every system, attack all, report
  squint train RECIPE             only the training
  squint attack FILE|RUN          attack a weights file (*.safetensors), or all of a run folder
  squint report RUN               write the report of a run folder again and print its table

Every field of a recipe can be set on the command line:

  squint run digits --train.epochs 5 --eps 16/255 --output runs/quick

`squint COMMAND --help` and `squint run RECIPE --help` list them with their defaults.

  --quiet      no progress bars, only the result
  --debug      show tracebacks
  --version    print the version

exit codes: 0 done, 1 a defect of squint's, 2 bad input (one line says which), 130 stopped by Ctrl-C
"""

STUDY_USAGE = """\
usage: squint {command} RECIPE [--output DIR] [--resume | --overwrite] [--FIELD VALUE ...]

{what}

recipes: {recipes}, or the path of a .yaml file

  squint {command} digits                                   into the folder runs/digits
  squint {command} digits --output runs/a --train.epochs 5  another folder, another training
  squint {command} digits --output runs/a --train.epochs 5 --resume    go on where it was stopped
  squint {command} cifar10 --data-dir DIR                   read the official files in DIR
  squint {command} my.yaml                                  your own recipe; start from runs/*/config.yaml

`squint {command} RECIPE --help` lists every field with its default.
"""
_WHAT = {
    "run": "Trains every system of a recipe, attacks all of them, and writes records, weights and a report.",
    "train": "Trains every system of a recipe and writes their weights; `squint run ... --resume` goes on.",
}


@dataclass(frozen=True)
class _AttackCommand:
    path: tyro.conf.Positional[Path]
    """Weights (*.safetensors), or a run folder: its recipe then gives the defaults."""
    options: Annotated[AttackOptions, tyro.conf.arg(name="")] = field(default_factory=AttackOptions)
    output: Path | None = None
    """JSON file for the records."""


@dataclass(frozen=True)
class _ReportOptions:
    """Write the report of a run folder again and print its table."""

    run: tyro.conf.Positional[Path]
    """Run folder with a results.json."""


@dataclass
class _Screen:
    """What the command line shows."""

    quiet: bool
    console: Console = field(default_factory=Console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 internal error, 2 bad input, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, quiet = _taken(words, "--debug"), _taken(words, "--quiet")
    commands: dict[str, Callable[[list[str], _Screen], int]] = {
        "run": _run,
        "train": _train,
        "attack": _attack,
        "report": _report,
        "recipes": _recipes,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        check_choice("command", words[0], commands)
        return commands[words[0]](words[1:], _Screen(quiet))
    except SystemExit as stop:
        return int(stop.code or 0)
    except (InputError, InputTypeError) as error:
        return _failed(error, " ".join(str(error).split()), 2, debug)
    except KeyboardInterrupt as error:
        kept = "; what was done is kept, continue with --resume" if words[0] in ("run", "train") else ""
        return _failed(error, f"stopped{kept}", 130, debug)
    except BrokenPipeError:
        # The reader of our output has gone (`squint ... | head`): there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = f"internal error, {type(error).__name__}: {' '.join(str(error).split())}"
        return _failed(error, message if debug else f"{message} (--debug shows where)", 1, debug)


def _failed(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"squint: {message}", file=sys.stderr)
    return code


def _taken(words: list[str], flag: str) -> bool:
    """Return whether a flag was among the words, and take it out."""
    present = flag in words
    words[:] = [word for word in words if word != flag]
    return present


def _run(words: list[str], screen: _Screen) -> int:
    return _study(words, screen, "run")


def _train(words: list[str], screen: _Screen) -> int:
    return _study(words, screen, "train")


def _study(words: list[str], screen: _Screen, command: str) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(
            STUDY_USAGE.format(command=command, what=_WHAT[command], recipes=", ".join(recipe_names())),
            end="",
        )
        return 0 if words else 2
    if words[0].startswith("-"):
        raise InputError(f"the recipe comes first: squint {command} RECIPE {words[0]} ...")
    recipe = load_recipe(words[0])
    options, recipe = overridden(recipe, words[1:], f"squint {command} {words[0]}")
    output = Path(options.output or f"runs/{recipe.name}")
    attack = command == "run"
    with bars(screen.console, screen.quiet) as bar:
        results = run_study(
            recipe, output, resume=options.resume, overwrite=options.overwrite, bar=bar, attack=attack
        )
    if attack:
        _show(results, output, screen)
    else:
        screen.console.print(f"weights: {escape(str(output / 'weights'))}", soft_wrap=True, highlight=False)
    return 0


def _show(results: dict[str, Any], run: Path, screen: _Screen) -> None:
    print_table(results, screen.console)
    screen.console.print(f"report: {escape(str(run / 'report.html'))}", soft_wrap=True, highlight=False)


def _attack(words: list[str], screen: _Screen) -> int:
    command = parsed(_AttackCommand, words, "squint attack", description=AttackOptions.__doc__)
    with bars(screen.console, screen.quiet) as bar:
        reports = attack_weights(command.path, command.options, bar)
    for report in reports:
        screen.console.print(str(report), highlight=False, markup=False, soft_wrap=True)
    if command.output is not None:
        write_json(command.output, [record.to_json() for report in reports for record in report.records])
    return 0


def _report(words: list[str], screen: _Screen) -> int:
    options = parsed(_ReportOptions, words, "squint report")
    results = read_results(options.run)
    write_report(options.run)
    _show(results, options.run, screen)
    return 0


def _recipes(words: list[str], screen: _Screen) -> int:
    if words and words[0] not in ("-h", "--help"):
        raise InputError(f"squint recipes takes no arguments; got {words[0]!r}")
    for name in recipe_names():
        screen.console.print(f"[bold]{name}[/bold]  {escape(load_recipe(name).description)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
