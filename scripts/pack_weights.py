"""Write every system of a run, packed at its bit-widths, into a folder: pack_weights.py RUN OUTPUT.

A finished system becomes NAME.safetensors. One whose training was stopped becomes
NAME.unfinished.safetensors, with the running average of its weights so far: the whole state of a training is
forty times as large, too large for what leads off many a leased machine. Networks with weights in full
precision pack to nothing smaller and are left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import squint
from squint._files import read_tensors
from squint.study.folder import read_config
from squint.study.images import images_of
from squint.study.systems import build_system


def main(run: Path, output: Path) -> None:
    """Pack what `run` holds into `output`; a file that is there is replaced."""
    recipe = read_config(run)
    for name, system in recipe.systems.items():
        finished, stopped = (run / part / f"{name}.safetensors" for part in ("weights", "checkpoints"))
        if not system.members or any(member.weight_bits is None for member in system.members):
            continue
        if finished.is_file():
            squint.save(squint.load(finished), output / f"{name}.safetensors", packed=True)
            (output / f"{name}.unfinished.safetensors").unlink(missing_ok=True)
        elif stopped.is_file():
            ens = build_system(recipe, name, images_of(recipe).train)
            tensors, _ = read_tensors(stopped)
            part = "average." if recipe.train.average > 0 else "module."
            ens.load_state_dict({k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)})
            squint.save(ens.eval(), output / f"{name}.unfinished.safetensors", packed=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: pack_weights.py RUN OUTPUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
