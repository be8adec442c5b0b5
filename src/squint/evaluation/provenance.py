"""Which code computed kept outcomes: parts of one figure that come of different attacks are told apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch

import squint
from squint._files import read_json
from squint.evaluation.records import Finding

PACKAGE = Path(squint.__file__).parent
_FOLDERS = ("attacks", "evaluation", "models", "quantize")
_BY, _OF = "by", "batch"
_UNKNOWN = {"squint": "unknown", "code": "unknown", "torch": "unknown"}


@cache
def code_digest() -> str:
    """Return a hash of the sources that a robust accuracy depends on: attacks, scores, networks, noise."""
    found = hashlib.sha256()
    sources = [*PACKAGE.glob("*.py"), *(path for name in _FOLDERS for path in (PACKAGE / name).rglob("*.py"))]
    for path in sorted(sources):
        found.update(f"{path.relative_to(PACKAGE).as_posix()}\x1f".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def maker() -> dict[str, str]:
    """Return who computes now: squint's version and sources, and torch."""
    return {"squint": squint.__version__, "code": code_digest(), "torch": str(torch.__version__)}


def makers(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Return who computed the parts in some folders, "unknown" where none is named, and who computes now.

    Raises:
        squint.InputError: a part's note is damaged.
    """
    notes = [read_json(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    said = [note.get(_BY) for note in notes if isinstance(note, dict) and _OF in note]
    known = [each if _is_maker(each) else _UNKNOWN for each in (maker(), *said)]
    return [dict(each) for each in sorted({tuple(sorted(each.items())) for each in known})]


def mixed_code(found: Sequence[dict[str, str]]) -> list[Finding]:
    """Return a finding where parts of one figure come of different sources."""
    codes = sorted({each["code"] for each in found})
    if len(codes) < 2:
        return []
    words = f"parts of the figure were computed by {len(codes)} states of squint's sources"
    return [Finding("mixed_code", words, {"codes": codes})]


def _is_maker(value: Any) -> TypeGuard[dict[str, str]]:
    if not isinstance(value, dict) or value.keys() != maker().keys():
        return False
    known = all(isinstance(text, str) and len(text) < 100 for text in value.values())
    return known and re.fullmatch("[0-9a-f]{16}", value["code"]) is not None
