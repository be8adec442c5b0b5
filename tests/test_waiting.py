"""Threads that wait: the variable is there before torch is, and whoever set one is obeyed."""

import os
import subprocess
import sys

import pytest

LOOK = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            raise SystemExit
sys.meta_path.insert(0, Finder())
"""


def seen(code: str, **variables: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    words = [sys.executable, "-c", code]
    return subprocess.run(
        words, env=clean | variables, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_number_of_looks_is_set_before_torch_is_loaded() -> None:
    assert seen(LOOK + "import squint") == "1000"
    assert seen(LOOK + "import squint.cli") == "1000"


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "7")])
def test_whoever_sets_a_variable_is_obeyed(name: str, value: str) -> None:
    assert seen(LOOK + "import squint", **{name: value}) == ("7" if name == "GOMP_SPINCOUNT" else "None")


def test_nothing_is_set_where_it_would_come_too_late() -> None:
    assert seen("import os, torch, squint; print(os.environ.get('GOMP_SPINCOUNT'))") == "None"
