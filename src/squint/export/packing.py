"""Weights of 1 to 8 bits stored in that many bits: levels instead of floats, bit for bit reversible."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint._checks import InputError, check_bits, describe
from squint.quantize import StochasticQuantizer

PACKED_KEY = "squint_packed"
"""Name of the metadata entry that says which tensors are packed, and how."""
_NUMBERS = "packed_numbers"


def pack_levels(levels: Tensor, bits: int) -> Tensor:
    """Return whole numbers 0 .. 2^bits - 1 as a stream of bits, uint8 of shape (ceil(n * bits / 8),).

    The lowest bit of a value comes first, and values follow each other without gaps across bytes.

    Args:
        levels: integers of any shape.
        bits: 1 to 8.

    Raises:
        squint.InputError: bits is out of range, or a level does not fit.
    """
    check_bits("bits", bits)
    flat = levels.reshape(-1).to(torch.int64)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= 2**bits):
        raise InputError(
            f"levels lie in [{int(flat.min())}, {int(flat.max())}]; allowed at {bits} bits: 0..{2**bits - 1}"
        )
    stream = (flat.to(torch.uint8)[:, None] >> _places(bits)) & 1
    padded = torch.zeros(-(-stream.numel() // 8) * 8, dtype=torch.uint8)
    padded[: stream.numel()] = stream.reshape(-1)
    # Shifted bits do not overlap: their sum is their union.
    return (padded.view(-1, 8) << _places(8)).sum(1, dtype=torch.uint8)


def unpack_levels(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` whole numbers (int64, shape (count,)) that `pack_levels` wrote.

    Raises:
        squint.InputError: the stream is not of the length that `count` values of `bits` bits have.
    """
    check_bits("bits", bits)
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != -(-count * bits // 8):
        raise InputError(
            f"packed has shape {tuple(packed.shape)} and dtype {packed.dtype}; "
            f"needed for {count} values of {bits} bits: ({-(-count * bits // 8)},) uint8"
        )
    stream = (packed[:, None] >> _places(8)) & 1
    values = stream.reshape(-1)[: count * bits].view(count, bits) << _places(bits)
    return values.sum(1, dtype=torch.uint8).to(torch.int64)


def _places(bits: int) -> Tensor:
    return torch.arange(bits, dtype=torch.uint8)


def pack(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state of a quantized module with its weights packed, and the metadata that `unpack` needs.

    A weight behind a still weight quantizer becomes its levels. What training moved below the rounding is
    gone: the module that comes back computes the same outputs, and training starts from the rounded weights.
    Noisy weights depend on what lies below the rounding and stay floats, and so do weights that several
    layers share where not all of them round alike. Single numbers are joined into one tensor of each type,
    since their names and places would take more room than they do.

    Returns:
        Tensors by name, and text metadata.
    """
    tensors = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    weights: dict[str, Any] = {}
    for prefix, layer, quantizer in _packable(module):
        name = f"{prefix}weight"
        low, step = _grid(quantizer.step, quantizer.offset)
        weight = cast(Tensor, layer.weight).detach()
        levels = ((weight - low) / step - 0.5).ceil().clamp(0, quantizer.levels - 1)
        tensors[name] = pack_levels(levels.cpu(), quantizer.bits)
        weights[name] = [quantizer.bits, *weight.shape]
    groups = _grouped({name: value for name, value in tensors.items() if value.ndim == 0})
    joined: dict[str, list[Tensor]] = {}
    for name, kind in _names(groups):
        joined.setdefault(kind, []).append(tensors.pop(name))
    tensors.update({f"{_NUMBERS}.{kind}": torch.stack(values) for kind, values in joined.items()})
    description = json.dumps({"weights": weights, "numbers": groups}, separators=(",", ":"))
    return tensors, {PACKED_KEY: description}


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the state that `pack` stored, its weights as the floats that the quantizers round them to.

    Tensors from a file without packed weights come back as they are.

    Raises:
        squint.InputError: the metadata is damaged, or does not fit the tensors.
    """
    state = dict(tensors)
    if PACKED_KEY not in metadata:
        return state
    try:
        description = json.loads(metadata[PACKED_KEY])
        named = _names(description["numbers"])
        for kind in sorted({kind for _, kind in named}):
            names = [name for name, other in named if other == kind]
            values = state.pop(f"{_NUMBERS}.{kind}")
            state.update(zip(names, values.clone(), strict=True))
        for name, (bits, *shape) in description["weights"].items():
            levels = unpack_levels(state[name], bits, math.prod(shape))
            quantizer = f"{name.removesuffix('weight')}weight_quantizer."
            low, step = _grid(state[f"{quantizer}step"], state[f"{quantizer}offset"])
            # The same operations as the quantizer's forward pass: it rounds these floats to themselves.
            state[name] = levels.view(shape).float().mul(step).add(low)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"the packed weights do not fit their description, the file is damaged: {describe(error)}"
        ) from None
    return state


def _grouped(numbers: Mapping[str, Tensor]) -> list[Any]:
    """Return [[[name, type], ...], [prefix, ...]] for all prefixes that have the same names below them."""
    below: dict[str, list[list[str]]] = {}
    for name, value in numbers.items():
        prefix, _, last = name.rpartition(".")
        below.setdefault(prefix, []).append([last, str(value.dtype).removeprefix("torch.")])
    groups: dict[str, list[Any]] = {}
    for prefix, names in below.items():
        groups.setdefault(str(names), [names, []])[1].append(prefix)
    return list(groups.values())


def _names(groups: list[Any]) -> list[tuple[str, str]]:
    """Return (full name, type) of everything that is grouped, in order."""
    return [
        (f"{prefix}.{last}" if prefix else str(last), str(kind))
        for names, prefixes in groups
        for prefix in prefixes
        for last, kind in names
    ]


def _grid(step: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return low and step as the quantizer's forward pass uses them."""
    bounded = step.detach().clamp_min(1e-8)
    return offset.detach() * bounded, bounded


def _packable(module: nn.Module) -> Iterator[tuple[str, nn.Module, StochasticQuantizer]]:
    """Yield (name prefix, layer, weight quantizer) of every layer whose weight is a fixed set of levels."""
    found: dict[int, list[tuple[str, nn.Module, StochasticQuantizer]]] = {}
    # Under every name: a layer that a network uses twice is stored twice.
    for name, layer in module.named_modules(remove_duplicate=False):
        quantizer = getattr(layer, "weight_quantizer", None)
        if isinstance(quantizer, StochasticQuantizer) and isinstance(getattr(layer, "weight", None), Tensor):
            still = not isinstance(quantizer.width, nn.Parameter) and float(quantizer.width) == 0
            if still and cast(Tensor, layer.weight).dtype == torch.float32:
                entry = (f"{name}." if name else ""), layer, quantizer
                found.setdefault(id(layer.weight), []).append(entry)
    uses = Counter(id(each) for _, each in module.named_parameters(remove_duplicate=False))
    for key, entries in found.items():
        first = entries[0][2]
        # Whoever else holds the same parameter would be handed what these quantizers round it to.
        if uses[key] == len(entries) and all(_same_grid(quantizer, first) for *_, quantizer in entries):
            yield from entries


def _same_grid(a: StochasticQuantizer, b: StochasticQuantizer) -> bool:
    return (
        (a.bits, a.levels) == (b.bits, b.levels)
        and torch.equal(a.offset, b.offset)
        and torch.equal(a.step.detach(), b.step.detach())
    )
