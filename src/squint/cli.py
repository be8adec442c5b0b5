"""The command line: `squint VERB ...`; what the verbs do lies in `squint.commands` and `squint.study`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro
from rich.console import Console
from rich.markup import escape

from squint import __version__, _ranks
from squint._checks import InputError, check_choice, printable
from squint._files import check_output, write_json
from squint.commands.break_ import BreakOptions, break_model
from squint.commands.compare import CompareOptions, compare
from squint.commands.detect import DetectOptions, detect_run
from squint.commands.export import ExportOptions, export_lines, export_path
from squint.commands.extrapolate import ExtrapolateOptions, extrapolations
from squint.commands.failing import failure
from squint.commands.info import InfoOptions, info_of, print_tables, to_json
from squint.commands.predict import PredictOptions, predict_files
from squint.commands.profile import ProfileOptions, print_planes, profile_run
from squint.commands.publish import PublishOptions
from squint.commands.report import ReportOptions
from squint.commands.seeds import chosen_seeds
from squint.commands.shipped import ShippedOptions, attack_file
from squint.commands.usage import SEEDS, STUDY_USAGE, USAGE, WHAT
from squint.commands.verify import VerifyOptions, verify_path
from squint.progress import bars
from squint.report import print_table, write_report
from squint.study import load_recipe, recipe_names, run_study
from squint.study.attack import AttackOptions, attack_weights
from squint.study.folder import read_results
from squint.study.hypothesis_verdict import print_judgement
from squint.study.job import held_by_first, join_started
from squint.study.keeping import held
from squint.study.overrides import overridden, parsed
from squint.study.published import publish
from squint.study.recipes import chosen_recipe
from squint.study.seeds import print_verdicts, run_seeds

_DIFFERS = 3
_DEVICES = re.compile(r"^--devices(?==|$)")
_SHARED = ("attack", "detect", "profile")
"""Commands whose work torchrun's processes share; a study brings its own together."""


@dataclass(frozen=True)
class _AttackCommand:
    path: tyro.conf.Positional[Path]
    """Weights (*.safetensors), a run folder or a shipped model; its recipe then gives the defaults."""
    options: Annotated[AttackOptions, tyro.conf.arg(name="")] = field(default_factory=AttackOptions)
    output: Path | None = None
    """JSON file for the records."""


class _Result(Protocol):
    """What prints as one line and is stored as plain data."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""


@dataclass
class _Screen:
    """What the command line shows."""

    quiet: bool
    console: Console = field(default_factory=Console)

    def say(self, *lines: object) -> None:
        """Print lines as they are, for people and for pipes."""
        for line in lines:
            self.console.print(printable(str(line)), highlight=False, markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 our defect, 2 bad input, 3 figure differs, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, quiet = _taken(words, "--debug"), _taken(words, "--quiet")
    commands: dict[str, Callable[[list[str], _Screen], int]] = {
        "run": _run,
        "train": _train,
        "attack": _attack,
        "detect": _detect,
        "profile": _profile,
        "report": _report,
        "verify": _verify,
        "break": _break,
        "compare": _compare,
        "extrapolate": _extrapolate,
        "publish": _publish,
        "info": _info,
        "export": _export,
        "predict": _predict,
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
        if words[0] in _SHARED:
            join_started()
        # The first process of a job speaks for all.
        first = _ranks.rank() == 0
        return commands[words[0]](words[1:], _Screen(quiet or not first, Console(quiet=not first)))
    except BaseException as error:
        return failure(error, words[0], debug)


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
            STUDY_USAGE.format(
                command=command,
                what=WHAT[command],
                recipes=", ".join(recipe_names()),
                seeds=SEEDS if command == "run" else "",
            ),
            end="",
        )
        return 0 if words else 2
    if words[0].startswith("-"):
        raise InputError(f"the recipe comes first: squint {command} RECIPE {words[0]} ...")
    recipe = chosen_recipe(words[0], words[1:])
    words = [_DEVICES.sub("--train.devices", word) for word in words]
    options, recipe = overridden(recipe, words[1:], f"squint {command} {words[0]}")
    output = Path(options.output or f"runs/{recipe.name}")
    how: dict[str, Any] = {"resume": options.resume, "overwrite": options.overwrite}
    if options.resume and not output.exists():
        screen.say(f"{output} is not there: a new run begins")
    attack = command == "run"
    seeds = chosen_seeds(command, recipe.name, words[1:], options.seeds, only=options.only)
    if seeds:
        with bars(screen.console, screen.quiet) as bar:
            verdicts = run_seeds(recipe, seeds, output, **how, bar=bar)
        print_verdicts(verdicts, screen.console)
        print_judgement(verdicts.get("hypothesis"), screen.console)
        screen.say(f"verdicts: {output / 'verdicts.json'}")
        return 0
    with bars(screen.console, screen.quiet) as bar:
        results = run_study(recipe, output, **how, bar=bar, attack=attack, only=options.only)
    if attack:
        _show(results, output, screen)
    else:
        screen.say(f"weights: {output / 'weights'}")
    return 0


def _show(results: dict[str, Any], run: Path, screen: _Screen) -> None:
    print_table(results, screen.console)
    print_judgement(results.get("hypothesis"), screen.console)
    screen.say(f"report: {run / 'report.html'}")


def _attack(words: list[str], screen: _Screen) -> int:
    if any(word.endswith(".onnx") for word in words):
        return _attack_shipped(words, screen)
    command = parsed(_AttackCommand, words, "squint attack", description=AttackOptions.__doc__)
    check_output(command.output)
    join_started(command.options.devices)
    with bars(screen.console, screen.quiet) as bar:
        reports = attack_weights(command.path, command.options, bar)
    screen.say(*reports)
    if command.output is not None:
        write_json(command.output, [record.to_json() for report in reports for record in report.records])
    return 0


def _attack_shipped(words: list[str], screen: _Screen) -> int:
    options = parsed(ShippedOptions, words, "squint attack")
    with bars(screen.console, screen.quiet) as bar:
        results = attack_file(options, bar)
    return _lines(results, options.output, screen)


def _lines(results: Sequence[_Result], output: Path | None, screen: _Screen) -> int:
    """Print one line per result, and write them where that was asked for."""
    screen.say(*results)
    if output is not None:
        write_json(output, [result.to_json() for result in results])
    return 0


def _detect(words: list[str], screen: _Screen) -> int:
    options = parsed(DetectOptions, words, "squint detect")
    join_started(options.devices)
    with (
        held_by_first(options.folder, make=options.folder != options.run),
        bars(screen.console, screen.quiet) as bar,
    ):
        found = detect_run(options, bar)
    screen.say(*found.lines(), f"detection: {options.folder / 'detection.json'}")
    return 0


def _profile(words: list[str], screen: _Screen) -> int:
    options = parsed(ProfileOptions, words, "squint profile")
    join_started(options.devices)
    with (
        held_by_first(options.folder, make=options.folder != options.run),
        bars(screen.console, screen.quiet) as bar,
    ):
        planes = profile_run(options, bar)
    print_planes(planes, options.folder, screen.console)
    return 0


def _verify(words: list[str], screen: _Screen) -> int:
    options = parsed(VerifyOptions, words, "squint verify")
    with bars(screen.console, screen.quiet) as bar:
        results = verify_path(options, bar)
    _lines(results, options.output, screen)
    return 0 if all(each.result.agrees is not False for each in results) else _DIFFERS


def _break(words: list[str], screen: _Screen) -> int:
    options = parsed(BreakOptions, words, "squint break")
    return _lines([break_model(options)], options.output, screen)


def _compare(words: list[str], screen: _Screen) -> int:
    options = parsed(CompareOptions, words, "squint compare")
    return _lines(compare(options), options.output, screen)


def _extrapolate(words: list[str], screen: _Screen) -> int:
    options = parsed(ExtrapolateOptions, words, "squint extrapolate")
    return _lines(extrapolations(options), options.output, screen)


def _publish(words: list[str], screen: _Screen) -> int:
    options = parsed(PublishOptions, words, "squint publish")
    folder = publish(options.run, options.system, options.output, options.records, data_dir=options.data_dir)
    screen.say(f"published: {folder}")
    return 0


def _info(words: list[str], screen: _Screen) -> int:
    options = parsed(InfoOptions, words, "squint info")
    tables = info_of(options)
    print_tables(tables, screen.console)
    if options.output is not None:
        write_json(options.output, to_json(tables))
    return 0


def _export(words: list[str], screen: _Screen) -> int:
    screen.say(*export_lines(export_path(parsed(ExportOptions, words, "squint export"))))
    return 0


def _predict(words: list[str], screen: _Screen) -> int:
    options = parsed(PredictOptions, words, "squint predict")
    return _lines(predict_files(options), options.output, screen)


def _report(words: list[str], screen: _Screen) -> int:
    options = parsed(ReportOptions, words, "squint report")
    results = read_results(options.run)
    with held(options.run):
        write_report(options.run)
    _show(results, options.run, screen)
    return 0


def _recipes(words: list[str], screen: _Screen) -> int:
    if words and words[0] not in ("-h", "--help"):
        raise InputError(f"squint recipes takes no arguments; got {words[0]!r}")
    for name in recipe_names():
        screen.console.print(f"[bold]{name}[/bold]  {escape(load_recipe(name).description)}", highlight=False)
    return 0
