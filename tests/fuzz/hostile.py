"""Files that are made to do harm: bombs, objects that want to be built, sizes that nobody has."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

from tests.fuzz.mutations import MARKUP, TRAVERSAL

DEEP = "[" * 200_000
MEGABYTES = 24


def yaml_files() -> Iterator[str]:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    yield bomb
    yield "<<: &x {a: 1}\nb: *x\n"
    for tag in (
        "!!python/object/apply:os.system ['touch executed']",
        "!!python/object/new:os.system ['touch executed']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:squint.study.config.RecipeConfig {}",
        "!!binary aGVsbG8=",
        "!!set {a, b}",
        "!!timestamp 2001-99-99",
        "!!omap [a: 1]",
        "!unknown x",
    ):
        yield f"name: {tag}\n"
    yield DEEP
    yield "{" * 200_000
    yield "- " * 100_000
    yield "name: " + "9" * 100_000
    yield "name: 0x" + "f" * 100_000
    yield "name: 0b" + "1" * 100_000
    yield "width: 0x" + "f" * 100_000
    yield "width: " + "1" + ":1" * 50_000
    yield "eps: " + "9" * 5_000 + "/1"
    yield "? [a, b]\n: 1\n"
    yield "? {a: b}\n: 1\n"
    yield "width: .inf\n"
    yield "width: .nan\n"
    yield "name: x\nname: y\n"
    yield "a\x00b"
    yield "\ufeff"
    yield "--- 1\n--- 2\n"
    yield "".join(f"field{k}: 1\n" for k in range(20_000))
    yield "systems: {" + ", ".join(f"s{k}: {{}}" for k in range(20_000)) + "}"
    yield f"systems: {{'{TRAVERSAL}': {{}}}}"
    yield f"systems: {{'{MARKUP}': {{}}}}"
    yield "name: " + "x" * 3_000_000


def json_files() -> Iterator[str]:
    yield DEEP
    yield '{"a":' * 100_000
    yield "9" * 1_000_000
    yield json.dumps({"format_version": 10**300})
    yield '{"format_version": 1e999}'
    yield '{"format_version": NaN}'
    yield '{"format_version": 1, "records": {}, "headline_eps": "1/0", "headline_attack": "x"}'
    yield json.dumps({"format_version": 1, "headline_eps": "1e400", "headline_attack": "x"})
    yield json.dumps({"format_version": 1, "headline_eps": "1" * 5000 + "/3", "headline_attack": "x"})
    yield json.dumps({"format_version": 1, "headline_eps": "1e999999999", "headline_attack": "x"})
    yield "[]," * 6_000_000
    yield "[" + "[]," * (15 * 2**20 // 3) + "[]]"
    yield "{" + ",".join(f'"{k:x}":0' for k in range(1_500_000)) + "}"
    yield "[" + "1e9," * (15 * 2**20 // 4) + "1]"
    yield ""
    yield "\ufeff{}"


def tensor_files() -> Iterator[bytes]:
    for shape, offsets in (
        ([10**12], [0, 4 * 10**12]),
        ([2**62, 4], [0, 0]),
        ([0, 2**62], [0, 0]),
        ([2**32, 2**32], [0, 0]),
        ([1], [10**18, 10**18 + 4]),
        ([1], [4, 0]),
        ([-1], [0, 4]),
        ([1.5], [0, 4]),
        ([True], [0, 4]),
    ):
        yield safetensors({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}, bytes(4))
    for kind in ("F999", "", None, "C64", "F4", "F8_E8M0", "BOOL", "U64"):
        yield safetensors({"a": {"dtype": kind, "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    many = {f"t{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in range(100_000)}
    yield safetensors(many, b"")
    yield safetensors({"__metadata__": {"squint": DEEP}}, b"")
    yield safetensors({"__metadata__": {"squint": "{}", "squint_packed": DEEP}}, b"")
    # Metadata that unfolds, under every key that something parses.
    for key in ("squint", "squint_checkpoint", "squint_detector", "squint_attacked"):
        yield safetensors({"__metadata__": {key: "[" + "[]," * (5 * 2**20) + "[]]"}}, b"")
        yield safetensors({"__metadata__": {key: "[" + "[]," * (2**20) + "[]]"}}, b"")
    yield struct.pack("<Q", 2**63) + b"{}"
    yield struct.pack("<Q", 2**64 - 1) + b"{}"
    yield struct.pack("<Q", 200_000) + DEEP.encode()
    yield b"\x80\x04cos\nsystem\n(S'touch executed'\ntR."


def safetensors(header: object, content: bytes) -> bytes:
    plain = json.dumps(header).encode()
    return struct.pack("<Q", len(plain)) + plain + content


def npz_files() -> Iterator[bytes]:
    zeros = bytes(MEGABYTES * 2**20)
    array = _npy("|u1", len(zeros)) + zeros
    # A bomb, and one whose members lie on top of each other.
    yield zipped({f"a{k}.npy": array for k in range(3)})
    yield _nested(zipped({"images.npy": _npy("|u1", 10**12)}))
    for kind in ("|O", "<U1000000000", "|V1000000000000"):
        yield zipped({"images.npy": _npy(kind, 1) + b"cos\nsystem\n(S'touch executed'\ntR."})
    yield zipped({"images.npy": _npy("<f8", 10**15)})
    yield zipped({"images.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000})
    yield zipped({"images.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"})
    yield zipped({f"a{k}.npy": b"" for k in range(50_000)})
    yield zipped({TRAVERSAL: b"x", "/etc/passwd": b"y", MARKUP: b"z"})
    yield b"PK\x05\x06" + bytes(18)
    # A list of members and nothing else: zipfile would make an object of each.
    entry = b"PK\x01\x02" + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    for count in (300_000, 1_000_000):
        size = len(entry) * count
        yield entry * count + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, size, 0, 0)


def _npy(kind: str, count: int) -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': ({count},), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _nested(content: bytes) -> bytes:
    """Return a zip whose directory declares terabytes for what holds nothing."""
    return content.replace(struct.pack("<I", len(_npy("|u1", 10**12))), struct.pack("<I", 2**32 - 2))


def gzip_files() -> Iterator[bytes]:
    for sizes in ((2**32 - 1, 2**32 - 1, 2**32 - 1), (10**6, 28, 28), (2, 2**31, 0), (2, 28, 28)):
        header = struct.pack(">IIII", 0x803, *sizes)
        yield gzipped(header + bytes(MEGABYTES * 2**20))


def gzipped(content: bytes) -> bytes:
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    return press.compress(content) + press.flush()


def png_files() -> Iterator[bytes]:
    for side, content in ((2**31 - 1, b""), (60_000, bytes(10)), (13_000, bytes(MEGABYTES * 2**20))):
        yield png(side, side, content)
    # Compressed text that unfolds to megabytes.
    bomb = b"name\x00\x00" + zlib.compress(bytes(MEGABYTES * 2**20), 9)
    whole = png(8, 8, bytes(8 * 25))
    yield whole[:33] + _chunk(b"zTXt", bomb) + whole[33:]


def png(width: int, height: int, content: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(content, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def archives() -> Iterator[bytes]:
    """Yield tar archives that want to write where they should not."""
    for name, kind, target in (
        (TRAVERSAL, tarfile.REGTYPE, ""),
        ("/tmp/executed", tarfile.REGTYPE, ""),
        ("cifar-10-batches-bin/test_batch.bin", tarfile.SYMTYPE, TRAVERSAL),
        ("cifar-10-batches-bin/test_batch.bin", tarfile.LNKTYPE, TRAVERSAL),
        ("cifar-10-batches-bin/test_batch.bin", tarfile.FIFOTYPE, ""),
        ("cifar-10-batches-bin/test_batch.bin", tarfile.CHRTYPE, ""),
    ):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"evil"))
        yield buffer.getvalue()


def by_ending() -> dict[str, list[bytes]]:
    """Return the files, by the ending of those whose place they take."""
    tables = [text.encode() for text in json_files()]
    return {
        ".yaml": [text.encode() for text in yaml_files()],
        ".json": tables,
        ".jsonl": tables,
        ".safetensors": list(tensor_files()),
        ".npz": list(npz_files()),
        ".gz": list(gzip_files()),
        ".png": list(png_files()),
        ".webp": list(png_files()),
    }
