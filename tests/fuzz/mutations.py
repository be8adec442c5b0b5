"""Ways to damage a file: bytes of any kind, and the values inside JSON, safetensors, npz and gzip files."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, Literal

HUGE = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
MARKUP = "<script>alert(1)</script>"
TRAVERSAL = "../../../../etc/passwd"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 10**12, 10**400, -(10**18), 0.5, -0.5, 1e308, float("nan"), float("inf"),
    "", "1/0", "9" * 400, MARKUP, TRAVERSAL, "\x1b[2J", "\x00", "$\\frac{1}{0}$", "{{ 7 * 7 }}", "é" * 100,
    [], [[]], [None], [1e12] * 8, {}, {"": {}}, {"shape": [2**40] * 4},
)  # fmt: skip
"""What may stand where something else should."""


def truncated(content: bytes, chance: random.Random) -> bytes:
    """Return the beginning of the content."""
    return content[: chance.randrange(len(content) + 1)]


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Return the content with one to sixteen bits turned over."""
    out = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16)) if out else 0):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def overwritten(content: bytes, chance: random.Random) -> bytes:
    """Return the content with a number in it replaced by an extreme one."""
    size = chance.choice((1, 2, 4, 8))
    number: int = chance.choice(HUGE) % 256**size
    order: Literal["little", "big"] = chance.choice(("little", "big"))
    place = chance.randrange(max(1, min(len(content), chance.choice((64, 512, 10**9)))))
    return content[:place] + number.to_bytes(size, order) + content[place + size :]


def rearranged(content: bytes, chance: random.Random) -> bytes:
    """Return the content with a piece removed, doubled, moved or made up."""
    a, b = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    piece = content[a:b]
    kind = chance.randrange(4)
    if kind == 0:
        return content[:a] + content[b:]
    if kind == 1:
        return content[:b] + piece + content[b:]
    if kind == 2:
        rest = content[:a] + content[b:]
        place = chance.randrange(len(rest) + 1)
        return rest[:place] + piece + rest[place:]
    return content[:a] + chance.randbytes(min(64, b - a)) + content[b:]


def odd_value(chance: random.Random) -> Any:
    """Return something that does not belong."""
    if chance.random() < 0.05:
        value: Any = []
        for _ in range(chance.choice((20, 500, 3000))):
            value = [value]
        return value
    return chance.choice(ODD)


def edited(plain: Any, chance: random.Random) -> Any:
    """Return plain data with one value somewhere replaced, removed, renamed or doubled."""
    if isinstance(plain, dict) and plain and chance.random() < 0.9:
        key = chance.choice(list(plain))
        kind = chance.random()
        if kind < 0.1:
            return {k: v for k, v in plain.items() if k != key}
        if kind < 0.15:
            return {
                chance.choice((MARKUP, TRAVERSAL, "", "x" * 300)) if k == key else k: v
                for k, v in plain.items()
            }
        return {k: edited(v, chance) if k == key else v for k, v in plain.items()}
    if isinstance(plain, list) and plain and chance.random() < 0.9:
        place = chance.randrange(len(plain))
        kind = chance.random()
        if kind < 0.1:
            return plain[:place] + plain[place + 1 :]
        if kind < 0.15:
            return plain[:place] + [plain[place]] * chance.choice((2, 100)) + plain[place:]
        return [edited(v, chance) if i == place else v for i, v in enumerate(plain)]
    if isinstance(plain, str) and plain[:1] in "{[" and chance.random() < 0.9:
        # JSON inside of JSON, as headers hold it.
        try:
            return dumped(edited(json.loads(plain), chance))
        except ValueError:
            return odd_value(chance)
    return odd_value(chance)


def dumped(plain: Any) -> str:
    """Return JSON; where it is nested too deep to be written, something that is nested too deep."""
    try:
        return json.dumps(plain)
    except RecursionError:
        return "[" * 100_000


def edited_json(content: bytes, chance: random.Random) -> bytes:
    """Return a JSON file, or one with a JSON document per line, with a value edited."""
    lines = content.split(b"\n")
    if len(lines) > 2 and lines[0][:1] == b"{" and lines[1][:1] == b"{":
        place = chance.randrange(len(lines) - 1)
        lines[place] = dumped(edited(json.loads(lines[place]), chance)).encode()
        return b"\n".join(lines)
    return dumped(edited(json.loads(content), chance)).encode()


def edited_tensors(content: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with its header edited, its length set right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = dumped(edited(json.loads(content[8 : 8 + length]), chance)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def edited_npz(content: bytes, chance: random.Random) -> bytes:
    """Return an npz file with one member's name or header changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        members = source.infolist()
        chosen = chance.choice(members) if members else None
        for member in members:
            name, inside = member.filename, source.read(member)
            if member is chosen:
                kind = chance.randrange(5)
                if kind == 0:
                    name = chance.choice((TRAVERSAL, MARKUP, "/abs.npy", "x" * 200, "clean"))
                elif kind == 1:
                    inside = npy(chance)
                elif kind == 2:
                    continue
                elif kind == 3:
                    inside = flipped(inside[:128], chance) + inside[128:]
                else:
                    inside = truncated(inside, chance)
            target.writestr(name, inside, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def npy(chance: random.Random) -> bytes:
    """Return an npy array with a header that it does not keep, or that nobody should believe."""
    shape = chance.choice(
        ("()", "(0,)", "(3,)", "(10**12,)", "(1000000000000,)", "(-1,)", "(2, 2)", "[1]", "'a'")
    )
    kind = chance.choice(
        ("<f8", "|O", "<U100000000", "|V8", "|b1", "<c16", ">i4", "<M8[D]", "[('a', '<i4')]")
    )
    quoted = kind if kind.startswith("[") else repr(kind)
    header = f"{{'descr': {quoted}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    pickled = b"cos\nsystem\n(S'touch executed'\ntR."
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled * 3


def edited_gzip(content: bytes, chance: random.Random) -> bytes:
    """Return a gzip file whose content is damaged and whose checksum is right."""
    inside = chance.choice(BYTES)(gzip.decompress(content), chance)
    return gzip.compress(inside, 1)


def edited_png(content: bytes, chance: random.Random) -> bytes:
    """Return a PNG of another declared size, its checksums right."""
    size = struct.pack(
        ">II", chance.choice((0, 1, 8, 20_000, 2**31 - 1)), chance.choice((0, 1, 9, 20_000, 2**31 - 1))
    )
    header = b"IHDR" + size + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


Mutation = Callable[[bytes, random.Random], bytes]
BYTES: tuple[Mutation, ...] = (truncated, flipped, flipped, overwritten, rearranged)
INSIDE: dict[str, Mutation] = {
    ".json": edited_json,
    ".jsonl": edited_json,
    ".safetensors": edited_tensors,
    ".npz": edited_npz,
    ".gz": edited_gzip,
    ".png": edited_png,
}
"""What knows the format, by the file name's ending."""
