from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from squint._checks import InputError, InputTypeError
from squint.data import ImageData
from squint.data.dataset import hold_out, stratified_split, to_unit


def make(n: int = 12, classes: int = 3) -> ImageData:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 2, 4, 5), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.arange(n) % classes, tuple("abcdefghij"[:classes]), "toy")


def test_every_byte_becomes_the_float_next_to_k_over_255() -> None:
    # float32(k / 255) from exact double arithmetic: a double quotient of small integers rounds the same way.
    exact = torch.tensor([k / 255 for k in range(256)], dtype=torch.float64).float()
    assert torch.equal(to_unit(torch.arange(256, dtype=torch.uint8)), exact)


def test_shape_length_and_classes() -> None:
    data = make()
    assert (len(data), data.shape, data.num_classes) == (12, (2, 4, 5), 3)


def test_subset_takes_the_indices_in_order() -> None:
    data = make()
    part = data.subset([5, 0, 5])
    assert torch.equal(part.images, data.images[[5, 0, 5]])
    assert part.labels.tolist() == [2, 0, 2]
    assert part.class_names == data.class_names
    assert len(data.subset([])) == 0


def test_float_images_and_pair() -> None:
    data = make()
    images, labels = data.pair()
    assert images.dtype == torch.float32
    assert torch.equal((images * 255).round().to(torch.uint8), data.images)
    assert torch.equal(data.float_images(torch.tensor([3, 1])), images[[3, 1]])
    assert labels is data.labels


def test_to_keeps_everything_else() -> None:
    moved = make().to("cpu")
    assert moved.name == "toy"
    assert torch.equal(moved.images, make().images)


@pytest.mark.parametrize("indices", [[12], [-1], [[0, 1]], [0.5], [True, False]])
def test_bad_indices_are_refused(indices: Any) -> None:
    with pytest.raises(InputError, match="indices"):
        make().subset(indices)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "torch.uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "torch.uint8"),
        (torch.zeros(2, 1, 0, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "images have shape"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), "torch.int64"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\(2,\)"),
        (
            torch.zeros(2, 1, 3, 3, dtype=torch.uint8),
            torch.tensor([0, 2]),
            r"label 2 of image 1; allowed: 0..1",
        ),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([-1, 0]), "label -1 of image 0"),
    ],
)
def test_bad_data_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ImageData(images, labels, ("a", "b"), "toy")
    assert "\n" not in str(caught.value)


def test_arrays_are_not_tensors() -> None:
    wrong: Any = [[0]]
    with pytest.raises(InputTypeError, match=r"images must be a torch\.Tensor"):
        ImageData(wrong, torch.zeros(1, dtype=torch.int64), ("a", "b"), "toy")


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_stratified_split_is_exact_and_proportional(labels: list[int], share: float, seed: int) -> None:
    y = torch.tensor(labels)
    count = int(share * len(labels))
    kept, held = stratified_split(y, count, torch.Generator().manual_seed(seed))
    assert len(held) == count
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    ideal = y.bincount() * count / len(labels)
    assert ((y[held].bincount(minlength=len(ideal)) - ideal).abs() < 1).all()


def test_every_image_of_a_class_is_equally_likely_to_be_held_out() -> None:
    labels, repeats = torch.zeros(10, dtype=torch.int64), 2000
    generator = torch.Generator().manual_seed(3)
    counts = torch.zeros(10)
    for _ in range(repeats):
        counts[stratified_split(labels, 3, generator)[1]] += 1
    error = (repeats * 0.3 * 0.7) ** 0.5
    assert ((counts - 0.3 * repeats).abs() < 5 * error).all()


def test_hold_out_depends_on_seed_and_purpose() -> None:
    data = make(90)

    def held(seed: int, purpose: str) -> Tensor:
        return hold_out(data, 30, seed=seed, purpose=purpose)[1].images

    assert torch.equal(held(0, "validation"), held(0, "validation"))
    assert not torch.equal(held(0, "validation"), held(1, "validation"))
    assert not torch.equal(held(0, "validation"), held(0, "test"))


@pytest.mark.parametrize(
    ("amount", "count"), [(0, 0), (0.0, 0), (3, 3), (1, 1), (0.25, 3), (0.01, 1), (11, 11)]
)
def test_hold_out_counts(amount: float, count: int) -> None:
    kept, held = hold_out(make(), amount, seed=0, purpose="validation")
    assert (len(kept), len(held)) == (12 - count, count)


@pytest.mark.parametrize("amount", [12, 1.0, -1, -0.1, 1.5, True, float("nan")])
def test_hold_out_refuses(amount: float) -> None:
    with pytest.raises(InputError, match="validation is"):
        hold_out(make(), amount, seed=0, purpose="validation")


@pytest.mark.gpu
def test_bytes_become_the_same_floats_on_the_gpu() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_unit(every.cuda()).cpu(), to_unit(every))
