"""The shipped models: each a small run folder with packed weights, records and evidence, attackable offline.

An entry holds `config.yaml`, `results.json`, `weights/SYSTEM.safetensors` (packed at their bit-widths),
`evidence/SYSTEM.npz` (the worst adversarial images found, as bytes), `images.npz` (the test images that they
came from) and `card.md`. `squint publish` makes one of a run.
"""

from __future__ import annotations

from pathlib import Path

from squint._checks import InputError

_ROOT = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the shipped models, sorted."""
    return sorted(path.name for path in _ROOT.iterdir() if (path / "config.yaml").is_file())


def resolved(path: str | Path) -> Path:
    """Return the folder of the shipped model that `path` names, or `path` where it exists or is no bare name.

    Raises:
        squint.InputError: a bare name that neither exists nor is a shipped model's.
    """
    given = Path(path)
    if given.parts != (given.name,) or given.suffix or given.exists():
        return given
    if given.name in names():
        return _ROOT / given.name
    raise InputError(f"{given} is not there; allowed: a path that exists, or {', '.join(names())}")


def hint(path: Path) -> str:
    """Return where the card of the shipped model is whose bare name `path` is, or an empty string."""
    if path.parts != (path.name,) or path.name not in names():
        return ""
    return f" (the shipped model of this name has its card in {_ROOT / path.name / 'card.md'})"


def is_shipped(path: Path) -> bool:
    """Return whether a path lies among the shipped models, where nothing is to be written."""
    return path.resolve().is_relative_to(_ROOT.resolve())


def home(path: str | Path) -> Path:
    """Return where what is made of a run is kept: its folder, or `runs/shipped/NAME` for a shipped model.

    Not `runs/NAME`: that is where `squint run NAME` puts a run of one's own.

    Raises:
        squint.InputError: see `resolved`.
    """
    run = resolved(path)
    return Path("runs") / "shipped" / run.name if is_shipped(run) else run


def weights(folder: Path) -> Path:
    """Return the one weights file of an entry's folder, or the folder where there is none or several."""
    files = sorted((folder / "weights").glob("*.safetensors"))
    return files[0] if len(files) == 1 else folder
