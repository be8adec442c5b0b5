"""How a command ends that does not end well: one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from squint import _ranks
from squint._checks import InputError, InputTypeError, printable, shown
from squint._memory import is_out_of_memory
from squint._ranks import FailedElsewhere, LostProcess

_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
"""What is wrong with a path that someone named, found where no one looked for it."""


def failure(error: BaseException, command: str, debug: bool) -> int:
    """Say what went wrong, and return the exit code: 1 our defect or a lost process, 2 bad input, 130 Ctrl-C.

    Args:
        error: what ended the command.
        command: its name.
        debug: show the traceback too.
    """
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    if isinstance(error, FailedElsewhere):
        return 1
    if isinstance(error, BrokenPipeError):
        # The reader of our output has gone (`squint ... | head`): there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    text = " ".join(str(error).split())
    if isinstance(error, InputError | InputTypeError):
        return _said(error, text, 2, debug)
    if isinstance(error, KeyboardInterrupt):
        kept = "; continue with --resume from what is done" if command in ("run", "train") else ""
        return _said(error, f"stopped{kept}", 130, debug)
    if isinstance(error, LostProcess):
        return _said(error, text, 1, debug)
    if is_out_of_memory(error):
        return _said(error, "out of memory: lower the batch size, the draws or the images", 2, debug)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
        return _said(error, f"cannot write {error.filename or 'the output'}: {error.strerror}", 2, debug)
    if isinstance(error, OSError) and error.filename is not None and error.errno in _UNUSABLE:
        return _said(error, f"cannot use {shown(str(error.filename))}: {error.strerror}", 2, debug)
    message = f"internal error, {type(error).__name__}: {text}"
    return _said(error, message if debug else f"{message} (--debug shows where)", 1, debug)


def _said(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    # Before they are together, all processes of a job meet the same error, and one line is enough.
    if _ranks.rank() == 0 or _ranks.count() > 1:
        place = f" (process {_ranks.rank()} of {_ranks.count()})" if _ranks.count() > 1 else ""
        print(f"squint{place}: {printable(message)}", file=sys.stderr)
    return code
