"""Seeds, generators and the noise context. Torch's global generator is never touched.

Noise reaches the quantizers inside any module through a context variable: the generators are read in the
forward pass. `noise(generator)` gives one stream to everything that runs inside. `draw_noise(seeds)` gives
each draw a stream of its own, for a batch into which draws are folded (draw-major): what a draw sees then
depends on its seed alone, not on which draws share its batch, so chunks never change a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError, check_number
from squint._strata import squeeze

_SEED_RANGE = 2**63 - 1


class _Stream:
    """One reproducible stream of noise: a generator on CPU, and its children on other devices."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._children: dict[torch.device, torch.Generator] = {}

    def reseed(self, value: int) -> None:
        self.generator.manual_seed(value)
        self._children.clear()

    def on(self, device: torch.device) -> torch.Generator:
        if device.type == self.generator.device.type:
            return self.generator
        if device not in self._children:
            child = torch.Generator(device=device)
            child.manual_seed(next_seed(self.generator))
            self._children[device] = child
        return self._children[device]


@dataclass(frozen=True)
class NoiseSource:
    """What the quantizers read: one stream per draw, and the draws' places among the strata.

    Attributes:
        streams: one stream per draw that is folded into the batch; a single one means no folding.
        strata: index of each draw among `strata_total` strata, or None for independent draws.
        strata_total: number of strata (draws) that the whole stratified set has.
        shared: the stream from which all draws of a stratified set take their permutations.
        copies: neighbouring streams that are one and the same, and give the same noise.
    """

    streams: tuple[_Stream, ...]
    strata: tuple[int, ...] | None = None
    strata_total: int = 0
    shared: _Stream | None = None
    copies: int = 1


_squint_stream = _Stream(torch.Generator().manual_seed(0))
_source: ContextVar[NoiseSource | None] = ContextVar("squint_noise", default=None)


class _Part:
    """Which draws of a set a model computes, and whether it took nothing but their seeds by `next_seeds`."""

    def __init__(self, generator: torch.Generator, places: range, total: int) -> None:
        self.places, self.total = places, total
        self._generator, self._state = generator, generator.get_state()
        self._asked, self._alone = False, True

    def took(self, generator: torch.Generator, before: Tensor) -> None:
        """Note what `next_seeds` or `draw_seeds` drew from a generator that was in state `before`."""
        self._alone = self._alone and torch.equal(before, self._state)
        self._asked, self._state = True, generator.get_state()

    @property
    def taken(self) -> bool:
        return self._asked and self._alone and torch.equal(self._generator.get_state(), self._state)


_part: ContextVar[_Part | None] = ContextVar("squint_part", default=None)


def seed(value: int) -> None:
    """Seed squint's own stream, which is used wherever no generator is given. Leaves torch's alone.

    Raises:
        squint.InputError: no whole number from 0 to 2^63 - 1.
    """
    _squint_stream.reseed(int(check_number("seed", value, 0, 2**63 - 1, whole=True)))


def default_generator() -> torch.Generator:
    """Return the generator of the innermost noise context, or squint's own stream."""
    source = _source.get()
    return source.streams[0].generator if source is not None else _squint_stream.generator


def current_source() -> NoiseSource:
    """Return what quantizers draw from at this moment."""
    return _source.get() or NoiseSource((_squint_stream,))


def next_seed(generator: torch.Generator) -> int:
    """Return a fresh 63-bit seed and advance the generator by one draw."""
    return int(torch.randint(_SEED_RANGE, (), generator=generator, device=generator.device))


def next_seeds(generator: torch.Generator, count: int) -> list[int]:
    """Return `count` fresh 63-bit seeds, advancing the generator.

    Inside `part_of_draws` they are the part's of a set's, and the generator advances by the whole set.
    """
    part = _part.get()
    if part is None or count != len(part.places):
        return _seeds(generator, count)
    before = generator.get_state()
    seeds = _seeds(generator, part.total)
    part.took(generator, before)
    return seeds[part.places.start : part.places.stop]


def draw_seeds(generator: torch.Generator, draws: int) -> tuple[list[int], int]:
    """Return `next_seeds` of a set of draws and, for `draw_noise`, the seed that its strata share.

    The second one is the same for all parts of a set: no noise but the strata's may come from it.
    """
    seeds, part = next_seeds(generator, draws), _part.get()
    if part is None or draws != len(part.places):
        return seeds, next_seed(generator)
    before = generator.get_state()
    shared = next_seed(generator)
    part.took(generator, before)
    return seeds, shared


def _seeds(generator: torch.Generator, count: int) -> list[int]:
    drawn: list[int] = torch.randint(
        _SEED_RANGE, (count,), generator=generator, device=generator.device
    ).tolist()
    return drawn


@contextmanager
def part_of_draws(generator: torch.Generator, places: range, total: int) -> Iterator[_Part]:
    """Let a model that is asked for `len(places)` draws compute these of a set of `total` draws.

    Memory may force a set of draws to be computed in parts. Each part then asks the model for its own draws
    with the generator as it was before the set: `next_seeds` draws the seeds of all and gives the part's, and
    `draw_noise` puts them in their strata among all. The parts together are the set, however it is cut.

    Args:
        generator: from which the model takes the seeds of its draws.
        places: the part's draws, consecutive places among the set's.
        total: number of draws in the set.

    Yields:
        a note whose `taken` says afterwards whether the model asked `next_seeds` (or `draw_seeds`) for its
        draws and drew nothing else from the generator. One that did cannot be cut: its next part must go on
        where the generator is, or noise would repeat.
    """
    note = _Part(generator, places, total)
    token = _part.set(note)
    try:
        yield note
    finally:
        _part.reset(token)


def derive_seed(base: int, *keys: object) -> int:
    """Return a 63-bit seed that depends on `base` and on every key (purpose, system, attack, chunk, rank)."""
    text = "\x1f".join([str(base), *(f"{type(key).__name__}:{key}" for key in keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") & _SEED_RANGE


def derive_generator(base: int, *keys: object) -> torch.Generator:
    """Return a CPU generator of its own for the given keys; equal keys give equal streams."""
    return torch.Generator().manual_seed(derive_seed(base, *keys))


@contextmanager
def noise(generator: torch.Generator) -> Iterator[None]:
    """Let every quantizer that runs inside the context draw its noise from `generator`.

    Reaches the quantizers inside any module. The same generator state, module, batch and device give
    bit-identical outputs.

    Args:
        generator: a `torch.Generator`; noise for another device comes from children seeded by it.
    """
    if not isinstance(generator, torch.Generator):
        raise InputTypeError(f"noise needs a torch.Generator, got {type(generator).__name__}")
    token = _source.set(NoiseSource((_Stream(generator),)))
    try:
        yield
    finally:
        _source.reset(token)


@contextmanager
def draw_noise(
    seeds: Sequence[int],
    *,
    strata: Sequence[int] | None = None,
    strata_total: int = 0,
    shared_seed: int = 0,
    copies: int = 1,
) -> Iterator[None]:
    """Give each of the draws folded into the batch (draw-major) a stream seeded by its own seed.

    Args:
        seeds: one seed per draw.
        copies: equal parts of a draw's images that all meet the same noise; not for stratified draws.
        strata: the draws' places in a stratified set of `strata_total` draws, or None.
        strata_total: size of the stratified set; the chunks of one set all name the same total.
        shared_seed: seed of the permutations that the whole stratified set shares.

    Raises:
        squint.InputError: there is no draw, or the draws do not fit their strata.
    """
    if not seeds:
        raise InputError("draws is 0; allowed: one seed or more")
    if strata is not None:
        places = set(strata)
        if len(places) != len(seeds) or len(strata) != len(seeds) or not places <= set(range(strata_total)):
            raise InputError(
                f"strata is {list(strata)!r} for {len(seeds)} draws; "
                f"allowed: one each, distinct, in 0..{strata_total - 1}"
            )
    part = _part.get()
    if part is not None and strata is not None and strata_total == len(part.places):
        strata, strata_total = [part.places.start + place for place in strata], part.total
    streams = tuple(_Stream(torch.Generator().manual_seed(s)) for s in seeds)
    streams = tuple(stream for stream in streams for _ in range(copies))
    shared = _Stream(torch.Generator().manual_seed(shared_seed)) if strata is not None else None
    places_held = None if strata is None else tuple(strata)
    token = _source.set(NoiseSource(streams, places_held, strata_total, shared, copies))
    # What a network asks for inside is its own, not part of the set.
    outside = _part.set(None)
    try:
        yield
    finally:
        _part.reset(outside)
        _source.reset(token)


def _uniform_into(out: Tensor, stream: _Stream) -> None:
    """Fill `out` with 16-bit integers k in -2^15 .. 2^15-1, all equally likely, drawn in 64-bit words."""
    count = out.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=out.device)
    words.random_(-(2**63), None, generator=stream.on(out.device))
    out.view(-1).copy_(words.view(torch.int16)[:count])


def random_integers(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return int16 noise k of the given shape; (k + 1/2) / 2^16 is symmetric uniform on (-1/2, 1/2).

    Narrow integers drawn in 64-bit words cost about a quarter of one float per element, and noise is what
    a stochastic quantizer costs. The leading dimension holds the folded draws where there are several.
    """
    source = current_source()
    draws = len(source.streams)
    if draws == 1:
        words = torch.empty((_numel(shape) + 3) // 4, dtype=torch.int64, device=device)
        words.random_(-(2**63), None, generator=source.streams[0].on(device))
        k = words.view(torch.int16)[: _numel(shape)].view(tuple(shape))
    else:
        copies = source.copies
        each = shape[0] // draws
        k = torch.empty((draws // copies, each, *shape[1:]), dtype=torch.int16, device=device)
        for part, stream in zip(k, source.streams[::copies], strict=True):
            _uniform_into(part, stream)
        k = (k if copies == 1 else k.repeat_interleave(copies, 0)).view(tuple(shape))
    return k if source.strata is None else _stratify(k, source)


def _stratify(k: Tensor, source: NoiseSource) -> Tensor:
    """Squeeze each draw's noise into its stratum: u = (pi(s) + v)/N with a permutation pi per element."""
    assert source.strata is not None
    assert source.shared is not None
    draws, total = len(source.streams), source.strata_total
    shape = (draws, k.shape[0] // draws, *k.shape[1:])
    keys = torch.empty((total, *shape[1:]), dtype=torch.int64, device=k.device)
    keys.random_(-(2**63), None, generator=source.shared.on(k.device))
    return squeeze(k.view(shape), keys, source.strata).view(k.shape)


def _numel(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
