"""The first seconds of a command, in which squint and torch are imported: what Ctrl-C does there."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.processes import ROOT, alone

START = """
import signal, sys
signal.signal(signal.SIGINT, signal.{handler})
from squint_command import main
sys.exit(main())
"""
INTERRUPTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
print("goes on")
"""
# What stands in squint's place and can be looked at.
LISTENING = """
import signal
def main():
    handler = signal.getsignal(signal.SIGINT)
    print("python's" if handler is signal.default_int_handler else handler.name)
    return 3
"""


def started(folder: Path, handler: str, package: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run the command with a package of these two files in squint's place."""
    (folder / "squint").mkdir()
    (folder / "squint" / "__init__.py").write_text(package, encoding="utf-8")
    (folder / "squint" / "cli.py").write_text(command, encoding="utf-8")
    env = alone()
    return subprocess.run(
        [sys.executable, "-c", START.format(handler=handler)],
        env=env | {"PYTHONPATH": f"{folder}:{env['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_ctrl_c_during_the_import_ends_without_a_word(tmp_path: Path) -> None:
    done = started(tmp_path, "default_int_handler", INTERRUPTED, LISTENING)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    done = started(tmp_path, "SIG_IGN", INTERRUPTED, LISTENING)
    assert (done.returncode, done.stdout, done.stderr) == (3, "goes on\nSIG_IGN\n", "")


def test_the_command_itself_hears_of_ctrl_c(tmp_path: Path) -> None:
    done = started(tmp_path, "default_int_handler", "", LISTENING)
    assert (done.returncode, done.stdout, done.stderr) == (3, "python's\n", "")


def test_the_installed_command_is_this_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"squint": "squint_command:main"}
