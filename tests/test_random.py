"""Seeds, streams and the noise context."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from squint import _random
from squint._checks import InputError
from squint._random import (
    current_source,
    default_generator,
    derive_generator,
    derive_seed,
    draw_noise,
    draw_seeds,
    next_seed,
    next_seeds,
    noise,
    part_of_draws,
    random_integers,
)

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_integers_are_sixteen_bits_all_equally_likely() -> None:
    count = 2**20
    with noise(generator()):
        k = random_integers((count,), CPU)
    assert k.dtype == torch.int16
    assert (int(k.min()), int(k.max())) == (-(2**15), 2**15 - 1)
    bins = torch.bincount(((k.int() + 2**15) >> 8), minlength=256).double()
    # Chi-square with 255 degrees of freedom: mean 255, standard deviation sqrt(510).
    chi = float(((bins - count / 256) ** 2 / (count / 256)).sum())
    assert abs(chi - 255) < 5 * 510**0.5
    low_bits = torch.bincount((k.int() & 7), minlength=8).double()
    assert float(((low_bits - count / 8) ** 2 / (count / 8)).sum()) < 7 + 5 * 14**0.5


def test_neighbours_are_uncorrelated() -> None:
    with noise(generator(1)):
        n = random_integers((2**18,), CPU).double() / 2**15
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((n[:-lag] * n[lag:]).mean()) * 3) < 5 * len(n) ** -0.5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (5, 7), (2, 0, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    with noise(generator()):
        assert tuple(random_integers(shape, CPU).shape) == shape


def test_seed_sets_squints_own_stream_and_leaves_torchs_alone() -> None:
    before = torch.get_rng_state()
    _random.seed(7)
    first = random_integers((100,), CPU)
    second = random_integers((100,), CPU)
    _random.seed(7)
    assert torch.equal(random_integers((100,), CPU), first)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_of_numpy_are_seeds() -> None:
    _random.seed(3)
    first = random_integers((100,), CPU)
    _random.seed(np.int64(3))  # type: ignore[arg-type]
    assert torch.equal(random_integers((100,), CPU), first)


@pytest.mark.parametrize("value", [-1, 2**70, 1.5, "x", None])
def test_seeds_that_are_none_are_named(value: Any) -> None:
    with pytest.raises(InputError, match="seed is"):
        _random.seed(value)


def test_contexts_nest_and_end_even_after_an_error() -> None:
    outer, inner = generator(1), generator(2)
    own = default_generator()
    with noise(outer):
        assert default_generator() is outer
        with noise(inner):
            assert default_generator() is inner
        assert default_generator() is outer
    with pytest.raises(KeyError), noise(outer):
        raise KeyError
    assert default_generator() is own


def test_the_same_generator_state_gives_the_same_noise_and_then_moves_on() -> None:
    g = generator(5)
    with noise(g):
        first = random_integers((64,), CPU)
        second = random_integers((64,), CPU)
    with noise(generator(5)):
        assert torch.equal(random_integers((64,), CPU), first)
    with noise(g):
        third = random_integers((64,), CPU)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_noise_needs_a_generator() -> None:
    with pytest.raises(TypeError, match="got int"), noise(cast(torch.Generator, 3)):
        pass


def test_each_draw_has_its_own_stream() -> None:
    with draw_noise([1, 2, 3]):
        assert len(current_source().streams) == 3
        k = random_integers((6, 5), CPU)
    for i, seed in enumerate((1, 2, 3)):
        with draw_noise([seed]):
            assert torch.equal(random_integers((2, 5), CPU), k[2 * i : 2 * i + 2])


@pytest.mark.parametrize("total", [2, 3, 8, 10])
def test_strata_are_distinct_and_together_even(total: int) -> None:
    seeds = next_seeds(generator(), total)
    with draw_noise(seeds, strata=range(total), strata_total=total, shared_seed=3):
        k = random_integers((total, 4_000), CPU)
    place = (k.double() + 2**15 + 0.5) / 2**16 * total
    # Cells of 2^-16 that straddle two strata are read as either.
    assert ((place.sort(0).values - torch.arange(total)[:, None] - 0.5).abs() <= 0.5 + total * 2**-16).all()
    mean = place.mean(1) / total
    assert ((mean - 0.5).abs() < 5 * (1 / 12 / 4_000) ** 0.5).all()


def test_a_draw_keeps_its_stratified_noise_whatever_shares_its_batch() -> None:
    seeds = next_seeds(generator(4), 5)
    with draw_noise(seeds, strata=range(5), strata_total=5, shared_seed=8):
        whole = [random_integers((5, 30), CPU) for _ in range(2)]
    for i in range(5):
        with draw_noise(seeds[i : i + 1], strata=[i], strata_total=5, shared_seed=8):
            for once in whole:
                assert torch.equal(random_integers((1, 30), CPU), once[i : i + 1])


@pytest.mark.parametrize(
    ("seeds", "strata", "total"), [([1, 2], [0], 2), ([1, 2], [0, 0], 2), ([1, 2], [0, 2], 2), ([], None, 0)]
)
def test_draws_that_do_not_fit_their_strata_are_refused(
    seeds: list[int], strata: list[int] | None, total: int
) -> None:
    with pytest.raises(ValueError, match="draws"), draw_noise(seeds, strata=strata, strata_total=total):
        pass


def test_the_parts_of_a_set_of_draws_are_the_set() -> None:
    def ask(draws: int, source: torch.Generator) -> tuple[list[int], Tensor]:
        """Take seeds and stratified noise as an ensemble does, and a seed in the middle of a draw."""
        seeds, shared = draw_seeds(source, draws)
        with draw_noise(seeds, strata=range(draws), strata_total=draws, shared_seed=shared):
            k = random_integers((draws, 30), CPU)
            assert next_seeds(generator(9), 2) == next_seeds(generator(9), 2)
        return seeds, k

    seeds, k = ask(5, generator(3))
    for cuts in ((0, 5), (0, 2, 4, 5), (0, 1, 2, 3, 4, 5)):
        found = []
        for start, stop in pairwise(cuts):
            source = generator(3)
            with part_of_draws(source, range(start, stop), 5) as note:
                assert not note.taken
                found.append(ask(stop - start, source))
            assert note.taken
        assert [seed for part, _ in found for seed in part] == seeds
        assert torch.equal(torch.cat([part for _, part in found]), k)


@pytest.mark.parametrize(
    "more",
    [
        lambda source: torch.rand(2, generator=source),
        next_seed,
        lambda source: next_seeds(source, 3),
        lambda source: next_seeds(generator(next_seed(source)), 2),
    ],
    ids=["values", "a seed", "another number of seeds", "seeds of a child"],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_part_that_draws_more_than_its_seeds_is_not_cut(
    more: Callable[[torch.Generator], object], first: bool
) -> None:
    source = generator(3)
    with part_of_draws(source, range(2), 5) as note:
        if first:
            more(source)
        next_seeds(source, 2)
        assert note.taken is not first
        if not first:
            more(source)
    assert not note.taken


def test_derived_seeds_depend_on_every_key_and_its_type() -> None:
    seeds = {
        derive_seed(0, "attack", 1),
        derive_seed(1, "attack", 1),
        derive_seed(0, "attack", 2),
        derive_seed(0, "attack", "1"),
        derive_seed(0, "score", 1),
        derive_seed(0, "attack1"),
        derive_seed(0, "attack", 1, 0),
    }
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    a, b = derive_generator(3, "chunk", 4), derive_generator(3, "chunk", 4)
    assert next_seeds(a, 5) == next_seeds(b, 5)


def test_copies_of_a_draw_meet_its_noise_and_draws_do_not_share_it() -> None:
    with draw_noise([1, 2], copies=3):
        k = random_integers((12, 5), CPU).view(2, 3, 2, 5)
        again = random_integers((12, 5), CPU).view(2, 3, 2, 5)
    assert torch.equal(k, k[:, :1].expand_as(k))
    assert not torch.equal(k[0], k[1])
    assert not torch.equal(k, again)
    with draw_noise([1, 2]):
        assert torch.equal(random_integers((4, 5), CPU).view(2, 2, 5), k[:, 0])
