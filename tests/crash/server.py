"""Runs commands of squint's in processes of their own that need not import it again: forked from this one.

Reads one JSON list of arguments per line; answers with the process's number, then with its exit code.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

import squint.cli
import squint.report

torch.set_num_threads(1)


def serve() -> None:
    for module in ("lightning_fabric.plugins", "sklearn.datasets"):
        __import__(module)
    print("ready", flush=True)
    for line in sys.stdin:
        arguments, errors = json.loads(line)
        child = os.fork()
        if not child:
            with Path(errors).open("wb") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                code = squint.cli.main(arguments)
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
