"""Reads damaged files one after the other in a process with little time and memory."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from squint._checks import InputError, InputTypeError
from tests.fuzz.data_readers import Reader
from tests.fuzz.hostile import by_ending
from tests.fuzz.mutations import BYTES, INSIDE, truncated
from tests.fuzz.readers import all_readers

SECONDS = 1.0
"""Processor time that reading one file may take."""
MEMORY = 768 * 2**20
"""Bytes that reading one file may take beyond what the process held before."""
HANGS = 20
"""Seconds after which a reader that does not return is ended."""
FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen",
    "pty.spawn", "pickle.find_class", "socket.connect", "ctypes.dlopen",
    "webbrowser.open", "shutil.rmtree",
)  # fmt: skip

Case = tuple[Reader, Path, str, bytes]
"""A reader, the file of it that is replaced, by what kind of damage, and the new content."""


class Guard:
    """Notes what reading a file must not do: start something, unpickle, or write outside of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = str(folder), list[str]()
        self.armed = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments[:1]}")
        elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str):
            path, mode = arguments[:2]
            if set(mode) & set("wxa+") and not path.startswith((self.folder, "/dev/null")):
                self.seen.append(f"writes {path}")


def random_cases(readers: Sequence[Reader], count: int, chance: random.Random) -> Iterator[Case]:
    """Yield `count` damaged files, readers in turn."""
    contents = {path: path.read_bytes() for reader in readers for path in reader.files}
    everything = list(contents.values())
    for number in range(count):
        reader = readers[number % len(readers)]
        path = chance.choice(reader.files)
        content, inside = contents[path], INSIDE.get(path.suffix)
        kind = chance.random()
        if kind < 0.05:
            yield reader, path, "swapped", chance.choice(everything)
        elif inside is not None and kind < 0.6:
            yield reader, path, inside.__name__, inside(content, chance)
        else:
            damage = chance.choice(BYTES)
            yield reader, path, damage.__name__, damage(content, chance)


def every_length(readers: Sequence[Reader]) -> Iterator[Case]:
    """Yield every file cut off at every length."""
    for reader in readers:
        for path in reader.files:
            content = path.read_bytes()
            for length in range(len(content)):
                yield reader, path, truncated.__name__, content[:length]


def hostile_cases(readers: Sequence[Reader]) -> Iterator[Case]:
    """Yield the files that are made to do harm, in the place of one of their format for each reader."""
    known = by_ending()
    for reader in readers:
        for path in {path.suffix: path for path in reader.files}.values():
            for content in known.get(path.suffix, ()):
                yield reader, path, "hostile", content


def read_all(cases: Iterator[Case], guard: Guard, failures: Path) -> tuple[int, int]:
    """Return how many files were read and how many of them refused; complain of the rest on the way."""
    done = refused = 0
    for reader, path, kind, content in cases:
        whole = path.read_bytes()
        # Kept before it is read: a crash of the interpreter leaves it there.
        kept = failures / f"{reader.name}-{kind}-{done}{path.suffix}"
        kept.write_bytes(content)
        path.write_bytes(content)
        problem = None
        guard.armed = True
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, HANGS)
        try:
            reader.read()
        except (InputError, InputTypeError) as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 4000:
                problem = f"a message of {len(str(error))} characters: {str(error)[:100]!r}"
        except BaseException as error:
            problem = f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        guard.armed = False
        seconds = time.process_time() - started
        if problem is None and seconds > SECONDS:
            problem = f"{seconds:.1f} s of processor time"
        if guard.seen:
            problem = f"{problem or ''} {guard.seen}"
            guard.seen.clear()
        path.write_bytes(whole)
        done += 1
        if problem is None:
            kept.unlink()
        else:
            print(f"{kept.name}: {path.name}: {problem}", flush=True)
    return done, refused


def main(which: str, count: int, seed: int, failures: Path) -> int:
    """Read what was asked for; return 0 where every file was read or refused as it should be."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        readers = all_readers(folder)
        for reader in readers:
            reader.read()
        guard = Guard(folder)
        for reader in readers:
            _first_failure(reader)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        cases = {
            "random": lambda: random_cases(readers, count, random.Random(seed)),
            "lengths": lambda: every_length(readers),
            "hostile": lambda: hostile_cases(readers),
        }
        done, refused = read_all(cases[which](), guard, failures)
    left = len(list(failures.iterdir()))
    print(
        f"{which}: {done} files, {refused} refused, {done - refused - left} read, {left} failures", flush=True
    )
    return 1 if left else 0


def _first_failure(reader: Reader) -> None:
    """Read something broken once: what libraries import only then is no work of the file."""
    for path in reader.files:
        whole = path.read_bytes()
        path.write_bytes(b"broken")
        with contextlib.suppress(Exception):
            reader.read()
        path.write_bytes(whole)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
