"""Recipes as text: packaged ones, YAML files, and what a person writes over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from squint._checks import InputError, check_choice, nearest
from squint.study.config import ADAPTER, RecipeConfig, to_plain
from squint.study.problems import problem
from squint.training.config import BEFORE

MAX_RECIPE_BYTES = 2**17
_SHOWN = 20
FAMILIES = ("study", "hypothesis")
"""Names that stand for one recipe per data set."""


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes, sorted."""
    folder = resources.files("squint") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str) -> RecipeConfig:
    """Return a packaged recipe by name, or one from a YAML file by path.

    Raises:
        squint.InputError: no such recipe or file, no YAML, or fields that are not allowed (all are named).
    """
    if name.endswith((".yaml", ".yml")):
        return read_recipe(Path(name))
    if name not in recipe_names():
        known = [*FAMILIES, *recipe_names()]
        raise InputError(
            f"recipe is {name!r}; allowed: {', '.join(known)}, or the path of a .yaml file"
            f"{nearest(name, known)}"
        )
    text = (resources.files("squint") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_recipe(text, name)


def chosen_recipe(name: str, words: Sequence[str]) -> RecipeConfig:
    """Return the recipe that a command line names: `study` and `hypothesis` have one for each data set.

    Args:
        name: what stands where the recipe's name belongs.
        words: what follows; `--dataset` chooses among the recipes of `study` or `hypothesis`, else digits.

    Raises:
        squint.InputError: see `load_recipe`; or there is no such recipe for that data set.
    """
    if name not in FAMILIES:
        return load_recipe(name)
    known = [other.removeprefix(f"{name}-") for other in recipe_names() if other.startswith(f"{name}-")]
    dataset = "digits"
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word == "--dataset":
            dataset = after
        elif word.startswith("--dataset="):
            dataset = word.removeprefix("--dataset=")
    check_choice(f"--dataset of {name}", dataset, known)
    return load_recipe(f"{name}-{dataset}")


def read_recipe(path: Path, *, of_run: bool = False) -> RecipeConfig:
    """Return the recipe of a YAML file.

    Args:
        path: the file.
        of_run: it is a run's own, which names every setting that its squint knew: one that is missing was as
            before it was there, and not at its present default.

    Raises:
        squint.InputError: see `load_recipe`.
    """
    if not path.is_file():
        raise InputError(f"recipe file {path} does not exist")
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise InputError(f"recipe file {path} is larger than {MAX_RECIPE_BYTES >> 10} KiB")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not readable YAML: it is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return parse_recipe(text, str(path), BEFORE if of_run else {})


def parse_recipe(text: str, source: str, train: Mapping[str, Any] = MappingProxyType({})) -> RecipeConfig:
    """Return the recipe that YAML text describes.

    Args:
        text: YAML.
        source: what errors name.
        train: settings of `train` that are not the defaults where the text leaves them out.

    Raises:
        squint.InputError: see `load_recipe`.
    """
    try:
        plain = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f" at line {error.problem_mark.line + 1}"
        raise InputError(f"{source} is not readable YAML{place}: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{source} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{source} holds {type(plain).__name__}; needed: a mapping of recipe fields")
    if train and isinstance(said := plain.get("train", {}), dict):
        plain["train"] = {**train, **said}
    return checked(plain, f"{source}: ")


def checked(plain: Mapping[str, Any], source: str) -> RecipeConfig:
    """Return plain data as a recipe.

    Args:
        plain: fields by name; those left out have their defaults.
        source: what errors begin with.

    Raises:
        squint.InputError: one line that names every field that is not allowed, up to twenty.
    """
    try:
        return ADAPTER.validate_python(plain)
    except ValidationError as error:
        found = error.errors(include_url=False)
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InputError(source + "; ".join(problem(e) for e in found[:_SHOWN]) + more) from None


def to_yaml(config: RecipeConfig) -> str:
    """Return the recipe as YAML that reads back equal."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, width=110)


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags that build objects, no aliases that could expand without bound, no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not allowed in a recipe", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is no plain text", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
