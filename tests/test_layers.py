"""The shape of the code (DESIGN section 6): imports point one way, files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import squint

ROOT = Path(squint.__file__).parent
LAYERS = (
    ("_",),  # every module whose name begins with an underscore
    ("quantize", "information", "attacks", "data"),
    ("models",),
    ("ensemble",),
    ("training",),
    ("evaluation", "baselines", "zoo", "export"),
    ("report",),
    ("study", "progress"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
CALLABLES_ONLY = ("attacks", "information")
MOST_LINES = 300
FILES = sorted(ROOT.rglob("*.py"))


def part_of(module: str) -> str:
    """Return the part of the package that a dotted module name belongs to; "" is the public API."""
    name = module.split(".")[1] if "." in module else ""
    private = name.startswith("_") and not name.startswith("__")
    return "_" if private else name


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Return the squint modules that a file imports anywhere in it, dotted."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "squint"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module is not None and node.module.split(".")[0] == "squint":
                # `from squint import data` names a module, `from squint.data import load` an object.
                inside = node.module == "squint"
                found |= {f"squint.{a.name}" for a in node.names} if inside else {node.module}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_imports_point_one_way(path: Path) -> None:
    own = part_of(module_of(path))
    if own == "":
        return  # the public API re-exports everything
    assert own in RANK, f"{own} has no place in the order of DESIGN section 6"
    for name in imported(path):
        other = part_of(name)
        if other in ("", own) or name == "squint.__version__":
            continue
        assert other in RANK, f"{path.name} imports {name}, which is no module"
        assert RANK[other] <= RANK[own], f"{module_of(path)} imports {name}, a layer above"
        if own in CALLABLES_ONLY:
            assert other not in ("quantize", "ensemble"), f"{module_of(path)} knows {name}"


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "import squint.data\nfrom squint import models\ndef f():\n    from squint.cli import main\n"
    )
    assert imported(path) == {"squint.data", "squint.models", "squint.cli"}
    assert part_of("squint._checks") == "_"
    assert part_of("squint.data.folder") == "data"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path))
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{path.name} has {lines} lines"
