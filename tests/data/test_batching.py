from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from squint._checks import InputError, InputTypeError
from squint.data import ImageData, batches, collect, epoch_permutation, iterate


def make(n: int = 10) -> ImageData:
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()
    return ImageData(images, torch.arange(n) % 2, ("a", "b"), "toy")


def identity_of(x: Tensor) -> list[int]:
    """Return each toy image's own number, which is its pixel value."""
    numbers: list[int] = (x[:, 0, 0, 0] * 255).round().long().tolist()
    return numbers


def test_batches_in_order() -> None:
    found = list(batches(make(), 4))
    assert [identity_of(x) for x, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(x.dtype == torch.float32 for x, _ in found)
    assert torch.cat([y for _, y in found]).tolist() == [0, 1] * 5


def test_drop_last_leaves_only_full_batches() -> None:
    assert [len(x) for x, _ in batches(make(), 4, drop_last=True)] == [4, 4]
    assert list(batches(make(), 11, drop_last=True)) == []


def test_a_shuffled_epoch_visits_every_image_once_with_its_label() -> None:
    generator = torch.Generator().manual_seed(0)
    found = list(batches(make(), 3, shuffle=True, generator=generator))
    order = [i for x, _ in found for i in identity_of(x)]
    assert order != list(range(10))
    assert sorted(order) == list(range(10))
    assert torch.cat([y for _, y in found]).tolist() == [i % 2 for i in order]


def test_the_order_follows_from_the_generator_alone() -> None:
    def orders(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        epochs = (batches(make(), 4, shuffle=True, generator=generator) for _ in range(2))
        return [[i for x, _ in epoch for i in identity_of(x)] for epoch in epochs]

    assert orders(5) == orders(5)
    assert orders(5) != orders(6)
    assert orders(5)[0] != orders(5)[1]


def test_an_epoch_left_early_does_not_change_the_next() -> None:
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    next(batches(make(), 2, shuffle=True, generator=generators[0]))
    list(batches(make(), 2, shuffle=True, generator=generators[1]))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    list(batches(make(), 2, shuffle=True, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_shuffling_needs_a_generator_at_once() -> None:
    with pytest.raises(InputTypeError, match="shuffle=True needs a torch"):
        batches(make(), 2, shuffle=True)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_batch_size_is_checked_at_once(batch_size: Any) -> None:
    with pytest.raises(InputError, match="batch_size"):
        batches(make(), batch_size)
    with pytest.raises(InputError, match="batch_size"):
        iterate(make(), batch_size)


def test_batches_takes_image_data_only() -> None:
    wrong: Any = make().pair()
    with pytest.raises(InputTypeError, match="needs ImageData"):
        batches(wrong, 2)


def test_permutation() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = epoch_permutation(50, generator), epoch_permutation(50, generator)
    assert sorted(first.tolist()) == list(range(50))
    assert not torch.equal(first, second)


def as_loader(x: Tensor, y: Tensor) -> Any:
    return DataLoader(TensorDataset(x, y), batch_size=4)


def as_stream(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield x[:7], y[:7]
    yield x[7:], y[7:]


FORMS: dict[str, Any] = {
    "image data": lambda _x, _y: make(),
    "pair": lambda x, y: (x, y),
    "list pair": lambda x, y: [x, y],
    "byte pair": lambda _x, y: (make().images, y),
    "two pairs": lambda x, y: [(x[:5], y[:5]), (x[5:], y[5:])],
    "narrow labels": lambda x, y: (x, y.to(torch.uint8)),
    "DataLoader": as_loader,
    "generator": as_stream,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_form_of_data_reads_the_same(form: str, batch_size: int) -> None:
    x, y = make().pair()
    found = list(iterate(FORMS[form](x, y), batch_size))
    assert torch.equal(torch.cat([images for images, _ in found]), x)
    assert torch.equal(torch.cat([labels for _, labels in found]), y)
    assert max(len(images) for images, _ in found) <= batch_size
    assert all(labels.dtype == torch.int64 for _, labels in found)
    images, labels = collect(FORMS[form](x, y))
    assert torch.equal(images, x)
    assert torch.equal(labels, y)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limit", [1, 7, 8, 10, 99])
def test_collect_stops_at_the_limit(form: str, limit: int) -> None:
    x, y = make().pair()
    images, labels = collect(FORMS[form](x, y), limit)
    assert torch.equal(images, x[:limit])
    assert torch.equal(labels, y[:limit])


def test_collect_reads_no_more_batches_than_it_needs() -> None:
    x, y = make().pair()

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield x, y
        raise AssertionError("read on")

    assert len(collect(stream(), 10)[0]) == 10


def test_float64_images_keep_their_dtype() -> None:
    x, y = make().pair()
    assert next(iterate((x.double(), y), 2))[0].dtype == torch.float64


@pytest.mark.parametrize("data", [3, None, "digits", {"x": 1}, torch.zeros(4, 1, 2, 2)])
def test_other_things_are_no_data(data: Any) -> None:
    with pytest.raises(InputTypeError, match="data must be a pair"):
        iterate(data, 2)


@pytest.mark.parametrize(
    "data",
    [[1, 2], [torch.zeros(2, 1, 2, 2)], (torch.zeros(2, 1, 2, 2), [0, 1]), [(torch.zeros(1, 2, 2), 3)]],
)
def test_iterables_of_other_things_are_no_data(data: Any) -> None:
    with pytest.raises(InputTypeError, match="batch 0 of the data must be a pair"):
        list(iterate(data, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.full((2, 1, 2, 2), 1.5), torch.zeros(2, dtype=torch.int64)), r"images has values in"),
        ((torch.full((2, 1, 2, 2), torch.nan), torch.zeros(2, dtype=torch.int64)), "NaN"),
        ((torch.zeros(2, 1, 2, 2), torch.zeros(3, dtype=torch.int64)), "labels has shape"),
        ((torch.zeros(2, 1, 2, 2), torch.zeros(2)), "whole numbers"),
        ((torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)), "non-empty"),
        ((torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64)), "non-empty"),
        ((torch.tensor(1, dtype=torch.uint8), torch.tensor(1)), "images has"),
        ([(torch.full((2, 1, 2, 2), 2.0), torch.zeros(2, dtype=torch.int64))], "images of batch 0"),
        ([], "no batches"),
        (iter(()), "no batches"),
        (make().subset([]), "holds no images"),
    ],
)
def test_bad_batches_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(iterate(data, 2))


def test_collect_refuses_images_of_two_shapes() -> None:
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match="different shapes"):
        collect([(torch.zeros(1, 1, 2, 2), y), (torch.zeros(1, 1, 3, 3), y)])


def test_collect_checks_the_limit() -> None:
    with pytest.raises(InputError, match="limit"):
        collect(make(), 0)
