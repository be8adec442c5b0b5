from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from squint._checks import InputError, InputTypeError
from squint.data import Augmentation, cutout, random_crop, random_flip


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, channels: int = 2, height: int = 6, width: int = 7) -> Tensor:
    return torch.rand(n, channels, height, width, generator=gen(9))


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_each_crop_is_a_window_of_the_padded_image_and_every_window_is_equally_likely(
    mode: Literal["reflect", "zero"],
) -> None:
    n, padding = 4000, 2
    x = pictures(1).expand(n, -1, -1, -1)
    padded = F.pad(x[:1], [padding] * 4, mode="reflect" if mode == "reflect" else "constant")
    windows = padded.unfold(2, 6, 1).unfold(3, 7, 1)[0].permute(1, 2, 0, 3, 4).reshape(25, -1)
    same = (random_crop(x, padding, gen(), mode=mode).flatten(1)[:, None] == windows).all(2)
    assert (same.sum(1) == 1).all()
    expected, error = n / 25, (n * (1 / 25) * (24 / 25)) ** 0.5
    assert ((same.sum(0) - expected).abs() < 5 * error).all()


def test_examples_of_a_batch_move_apart_and_channels_together() -> None:
    x = torch.arange(36.0).view(1, 1, 6, 6).expand(50, 3, 6, 6) / 36
    moved = random_crop(x, 2, gen())
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(moved[:, 0], moved[:, 2])
    assert len({tuple(image.flatten().tolist()) for image in moved[:, 0]}) > 10


def test_flip_mirrors_about_half_of_the_images_left_to_right() -> None:
    n = 2000
    x = pictures(1).expand(n, -1, -1, -1)
    out = random_flip(x, gen())
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert (mirrored | (out == x).flatten(1).all(1)).all()
    assert abs(int(mirrored.sum()) - n / 2) < 5 * (n / 4) ** 0.5


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_cutout_blackens_one_square_around_a_uniform_centre(size: int) -> None:
    n, height, width = 4000, 5, 6
    x = torch.ones(n, 2, height, width)
    out = cutout(x, size, gen())
    assert torch.equal(out[:, 0], out[:, 1])
    expected = torch.zeros(height * width, height, width)
    for place in range(height * width):
        top, left = place // width - size // 2, place % width - size // 2
        expected[place, max(top, 0) : top + size, max(left, 0) : left + size] = 1
    same = ((1 - out[:, 0]).flatten(1)[:, None] == expected.flatten(1)).all(2)
    assert (same.sum(1) == 1).all()
    p = 1 / (height * width)
    assert ((same.sum(0) - n * p).abs() < 5 * (n * p * (1 - p)) ** 0.5).all()


def test_cutout_keeps_the_rest() -> None:
    x = pictures(20) + 0.01
    out = cutout(x, 3, gen())
    assert ((out == x) | (out == 0)).all()


@given(
    crop=st.integers(0, 4),
    flip=st.booleans(),
    size=st.integers(0, 9),
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(5, 8), st.integers(5, 8)),
    seed=st.integers(0, 2**31),
)
def test_augmentation_keeps_shape_dtype_and_range(
    crop: int, flip: bool, size: int, shape: tuple[int, int, int, int], seed: int
) -> None:
    x = torch.rand(shape, generator=gen(seed), dtype=torch.float64)
    before = x.clone()
    augmentation = Augmentation(crop=crop, flip=flip, cutout=size)
    out = augmentation(x, gen(seed))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert ((out >= 0) & (out <= 1)).all()
    assert torch.equal(x, before)
    assert torch.equal(out, augmentation(x, gen(seed)))


def test_seeds_matter_and_the_global_generator_does_not() -> None:
    x, augmentation = pictures(30), Augmentation(crop=2, flip=True, cutout=3)
    state = torch.random.get_rng_state()
    assert not torch.equal(augmentation(x, gen(1)), augmentation(x, gen(2)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_nothing_switched_on_returns_the_batch_and_draws_nothing() -> None:
    x, generator = pictures(3), gen()
    state = generator.get_state()
    assert Augmentation()(x, generator) is x
    assert torch.equal(state, generator.get_state())


@pytest.mark.parametrize(("crop", "cut"), [(-1, 0), (0, -1), (1.5, 0), (True, 0)])
def test_bad_settings_are_refused(crop: Any, cut: Any) -> None:
    with pytest.raises(InputError, match=r"crop|cutout"):
        Augmentation(crop=crop, cutout=cut)


def test_a_reflected_border_is_shorter_than_the_image() -> None:
    assert random_crop(pictures(3), 5, gen()).shape == (3, 2, 6, 7)
    with pytest.raises(InputError, match="padding is 6"):
        random_crop(pictures(3), 6, gen())
    assert random_crop(pictures(3), 9, gen(), mode="zero").shape == (3, 2, 6, 7)


def test_wrong_inputs_are_refused() -> None:
    no_generator: Any = None
    with pytest.raises(InputTypeError, match=r"needs a torch\.Generator"):
        random_flip(pictures(2), no_generator)
    with pytest.raises(InputError, match="float images"):
        random_flip(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), gen())
    with pytest.raises(InputError, match="float images"):
        cutout(torch.zeros(1, 3, 3), 2, gen())
    wrong: Any = "mirror"
    with pytest.raises(InputError, match="allowed: reflect, zero"):
        random_crop(pictures(2), 1, gen(), mode=wrong)


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_augmentation_on_the_gpu() -> None:
    x, augmentation = pictures(30), Augmentation(crop=2, flip=True, cutout=3)
    assert torch.equal(augmentation(x.cuda(), gen()).cpu(), augmentation(x, gen()))
