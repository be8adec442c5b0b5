"""Where the `squint` command starts: importing it takes seconds, in which Ctrl-C is to end it quietly."""

from __future__ import annotations

import signal


def main() -> int:
    """Run the command and return its exit code, see `squint.cli.main`.

    Until squint is imported, and nothing is begun that could be kept, Ctrl-C ends the process as it ends any
    program that does not listen: at once and without a word. A shell that ignores it for its background jobs
    goes on ignoring it.
    """
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from squint.cli import main as command

    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()
