"""`squint info`: what a system costs, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from squint import data as D
from squint._checks import InputError
from squint._files import check_output
from squint.commands.targets import attacked_images, load_targets
from squint.export.sizes import SizeTable, info_table


@dataclass(frozen=True)
class InfoOptions:
    """List parameters, bits, bytes and bit operations of a system, layer by layer and in all.

    Examples:
      squint info runs/digits
      squint info mine.safetensors --image-shape 3 32 32
    """

    path: tyro.conf.Positional[Path]
    """Run folder, or weights (*.safetensors)."""
    image_shape: tuple[int, ...] = ()
    """Channels, height and width of one image; default: the run's data set's, digits' outside of a run."""
    output: Path | None = None
    """JSON file for the figures."""


def info_of(options: InfoOptions) -> dict[str, SizeTable]:
    """Return each system's table, by name.

    Raises:
        squint.InputError: no weights, or images that they are not for.
    """
    check_output(options.output)
    found = load_targets(options.path)
    # Reading a whole data set, or downloading it, for a shape that is known would be a surprise.
    known = options.image_shape or D.IMAGE_SHAPES.get(found[0].known.dataset)
    shape = known or attacked_images(found[0]).shape
    tables = {}
    for target in found:
        try:
            tables[target.name] = info_table(target.ens, shape)
        except InputError as error:
            advice = "" if options.image_shape else "; name another with --image-shape"
            raise InputError(f"{target.file}: {error}{advice}") from None
    return tables


def to_json(tables: Mapping[str, SizeTable]) -> dict[str, Any]:
    """Return plain data: every system's layers and sums."""
    return {
        name: {
            "parameters": table.parameters,
            "packed_bytes": table.packed_bytes,
            "full_bytes": table.full_bytes,
            "bit_operations": table.bit_operations,
            "channels": table.channels,
            "dead_channels": table.dead_channels,
            "layers": [asdict(layer) | {"bit_operations": layer.bit_operations} for layer in table.layers],
        }
        for name, table in tables.items()
    }


def print_tables(tables: Mapping[str, SizeTable], console: Console) -> None:
    """Print a table, bits being those of weights × inputs, bytes packed, and a line of sums per system."""
    for name, sizes in tables.items():
        table = Table(box=None, padding=(0, 2, 0, 0), title=Text(name), title_justify="left")
        table.add_column("Layer", overflow="fold")
        for column in ("Parameters", "Bits", "Passes", "Bytes", "float32", "Bit operations"):
            table.add_column(column, justify="right", no_wrap=True)
        for layer in sizes.layers:
            table.add_row(
                Text(layer.name.removeprefix("members.")),
                f"{layer.parameters:,}",
                f"{layer.weight_bits} × {layer.activation_bits}",
                str(layer.passes),
                f"{layer.packed_bytes:,}",
                f"{layer.full_bytes:,}",
                f"{layer.bit_operations:,}",
            )
        console.print(table)
        console.print(
            f"{name} in all: {sizes.parameters:,} parameters, {sizes.packed_bytes:,} bytes "
            f"packed ({sizes.full_bytes:,} in float32, {sizes.full_bytes / sizes.packed_bytes:.1f} times as "
            f"many), {sizes.bit_operations:,} bit operations per prediction",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if sizes.dead_channels:
            console.print(
                f"{name}: {sizes.dead_channels:,} of {sizes.channels:,} channels have no weights: all of "
                "theirs are rounded to zero, or next to it",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
