"""Evaluation divided among the processes of a job: every chunk is computed once, and all of them learn it.

Random streams are keyed by the chunk's place in the whole, never by the process, and nothing is summed: what
comes out does not depend on how many processes there are or on which one finishes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from squint import _ranks
from squint._checks import InputError

_T = TypeVar("_T")


def sharded(count: int, compute: Callable[[int], _T], what: str) -> list[_T]:
    """Return [compute(0), ..., compute(count - 1)], in every process; called by all of them alike.

    Process p computes chunks p, p + processes, p + 2 processes and so on. Alone, a process computes all.

    Args:
        count: number of chunks.
        compute: a chunk's outcome: plain data, or tensors on the CPU.
        what: name of what is divided, for errors.

    Raises:
        squint.InputError: a chunk is missing, because the processes were not started alike.
    """
    own = {chunk: compute(chunk) for chunk in range(_ranks.rank(), count, _ranks.count())}
    return merged(_ranks.exchange((count, own)), what)


def merged(shards: list[tuple[int, dict[int, _T]]], what: str) -> list[_T]:
    """Return all chunks in order, of every process's number of chunks and own chunks by place.

    Raises:
        squint.InputError: the processes disagree on the number, or a chunk is in no shard or in two.
    """
    counts = [count for count, _ in shards]
    advice = "start all processes with the same command, code and data, with --resume to keep what is done"
    if len(set(counts)) > 1:
        raise InputError(f"{what}: the processes have {counts} chunks; {advice}")
    found: dict[int, _T] = {}
    for process, (_, own) in enumerate(shards):
        for chunk, outcome in own.items():
            if chunk in found:
                raise InputError(f"{what}: chunk {chunk} came twice, last from process {process}; {advice}")
            found[chunk] = outcome
    missing = [chunk for chunk in range(counts[0]) if chunk not in found]
    if missing:
        owners = sorted({chunk % len(shards) for chunk in missing})
        raise InputError(
            f"{what}: {len(missing)} of {counts[0]} chunks are missing (the first is {missing[0]}), which "
            f"process {', '.join(map(str, owners))} had to bring; {advice}"
        )
    return [found[chunk] for chunk in range(counts[0])]
