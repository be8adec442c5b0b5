"""Common corruptions: closed forms where there are any, and strengths that are ordered on real images."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from squint._checks import InputError, InputTypeError
from squint.data.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from squint.data.digits import digits

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic", "translate"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(n: int, channels: int, height: int, width: int) -> Tensor:
    """Smooth coloured waves with sharp discs on them: edges, slopes and flat parts, as photographs have."""
    down = torch.linspace(0, 1, height)[:, None]
    across = torch.linspace(0, 1, width)[None, :]
    drawn = torch.rand(n, channels, 4, 1, 1, generator=generator(5))
    a, b, c, d = drawn.unbind(2)
    waves = 0.5 + 0.4 * torch.sin(9 * a * across + 9 * b * down + 6 * c)
    disc = ((across - a).square() + (down - b).square() < 0.06).float()
    return (waves * (1 - disc) + d * disc).clamp(0, 1)


SETS = {
    "digits": digits().test.float_images()[:60],
    "grey 28": scenes(16, 1, 28, 28),
    "colour 32": scenes(16, 3, 32, 32),
    "colour 40x48": scenes(4, 3, 40, 48),
}


def test_there_are_ten_kinds_and_five_strengths() -> None:
    assert len(CORRUPTIONS) >= 10
    assert STRENGTHS == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_distance_grows_with_strength(kind: str, name: str) -> None:
    x = SETS[name]
    distances = []
    for strength in STRENGTHS:
        changed = corrupt(x, kind, strength, generator())
        assert changed.shape == x.shape
        assert changed.dtype == x.dtype
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 1
        distances.append(float((changed - x).flatten(1).norm(dim=1).mean()))
    assert distances[0] > 0.1
    assert all(b > 1.03 * a for a, b in pairwise(distances)), distances


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 2, 9, 13), (1, 4, 8, 65)])
def test_any_size_and_number_of_channels(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=generator(1))
    for strength in (1, 5):
        changed = corrupt(x, kind, strength, generator())
        assert changed.shape == x.shape
        assert bool(torch.isfinite(changed).all())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_equal_generators_give_equal_images_and_leave_torchs_alone(kind: str) -> None:
    x = SETS["digits"][:4]
    before, state = x.clone(), torch.get_rng_state()
    first, again, other = (corrupt(x, kind, 3, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind not in RANDOM)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_dtype_is_kept_and_arithmetic_is_float32() -> None:
    x = SETS["digits"][:2]
    changed = corrupt(x.double(), "contrast", 2, generator())
    assert changed.dtype == torch.float64
    assert torch.equal(changed.float(), corrupt(x, "contrast", 2, generator()))


def test_noises_have_the_moments_of_their_laws() -> None:
    n = 40_000
    grey = torch.full((1, 1, 200, 200), 0.5)
    noise = corrupt(grey, "gaussian_noise", 2, generator()) - 0.5
    # The deviation of a sample's standard deviation is sigma / sqrt(2n); that of its mean sigma / sqrt(n).
    assert abs(float(noise.std()) - 0.08) < 4 * 0.08 / math.sqrt(2 * n)
    assert abs(float(noise.mean())) < 4 * 0.08 / math.sqrt(n)
    shot = corrupt(torch.full_like(grey, 0.25), "shot_noise", 1, generator())
    assert abs(float(shot.mean()) - 0.25) < 4 * math.sqrt(0.25 / 100 / n)
    assert abs(float(shot.var()) - 0.25 / 100) < 5 * 0.25 / 100 * math.sqrt(2 / n)
    spoiled = corrupt(grey, "impulse_noise", 3, generator())
    for value in (0.0, 1.0):
        share = float((spoiled == value).float().mean())
        assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / n)


@pytest.mark.parametrize(
    "kind", ["gaussian_blur", "defocus_blur", "motion_blur", "pixelate", "elastic", "translate", "jpeg"]
)
def test_a_flat_image_stays_flat(kind: str) -> None:
    x = torch.full((2, 3, 16, 16), 102 / 255)
    # JPEG rounds its colour transform to whole levels.
    assert torch.allclose(corrupt(x, kind, 3, generator()), x, atol=1.01 / 255 if kind == "jpeg" else 1e-6)


def test_blurs_keep_the_sum_of_a_point_and_spread_as_they_say() -> None:
    point = torch.zeros(1, 1, 31, 31)
    point[..., 15, 15] = 1
    places = torch.arange(31.0) - 15
    for kind in ("gaussian_blur", "defocus_blur", "motion_blur"):
        blurred = corrupt(point, kind, 4, generator())
        assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
        centre = (blurred[0, 0] * places[:, None]).sum(), (blurred[0, 0] * places).sum()
        assert max(abs(float(value)) for value in centre) < 1e-5
    spread = corrupt(point, "gaussian_blur", 4, generator())[0, 0].sum(0) @ places.square()
    # Sampling a Gaussian of sigma 1.1 on whole pixels and cutting it at 3.6 sigma leaves its variance
    # within 1 %.
    assert float(spread) == pytest.approx(1.1**2, rel=0.01)


def test_translation_moves_a_ramp_by_its_length() -> None:
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, 31), torch.linspace(0, 1, 31), indexing="ij"))
    moved = corrupt(ramp[None].expand(50, -1, -1, -1), "translate", 3, generator())
    shift = (moved - ramp)[:, :, 15, 15] * 30
    assert torch.allclose(shift.norm(dim=1), torch.full((50,), 0.1 * 31), atol=1e-4)
    assert float(shift.mean(0).norm()) < 4 * 3.1 / math.sqrt(50)  # directions are uniform


def test_contrast_and_brightness_closed_forms() -> None:
    x = SETS["colour 32"]
    mean = x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(corrupt(x, "contrast", 5, generator()), mean + 0.12 * (x - mean), atol=1e-6)
    assert torch.allclose(corrupt(x, "brightness", 1, generator()), (x + 0.08).clamp(max=1), atol=1e-6)


def test_pixelate_gives_means_of_blocks() -> None:
    x = SETS["digits"]
    blocks = x.view(len(x), 1, 4, 2, 4, 2).mean((3, 5))  # 0.55 of 8 pixels are 4 blocks
    expected = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(corrupt(x, "pixelate", 3, generator()), expected, atol=1e-6)
    scene = SETS["colour 40x48"]
    assert torch.allclose(
        corrupt(scene, "pixelate", 5, generator()).mean((2, 3)), scene.mean((2, 3)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("x", "kind", "strength", "words"),
    [
        (torch.zeros(1, 1, 7, 8), "fog", 1, r"shape \(1, 1, 7, 8\); allowed"),
        (torch.zeros(2, 64), "fog", 1, "allowed: .batch, channels"),
        (torch.full((1, 1, 8, 8), 2.0), "fog", 1, r"allowed: \[0, 1\]"),
        (torch.zeros(1, 1, 8, 8), "fogg", 1, "did you mean 'fog'"),
        (torch.zeros(1, 1, 8, 8), "fog", 6, "strength is 6"),
        (torch.zeros(1, 1, 8, 8), "fog", 0, "strength is 0"),
    ],
)
def test_bad_input_is_named(x: Tensor, kind: str, strength: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        corrupt(x, kind, strength, generator())


def test_a_generator_is_needed() -> None:
    with pytest.raises(InputTypeError, match=r"corrupt needs a torch\.Generator"):
        corrupt(torch.zeros(1, 1, 8, 8), "fog", 1, None)  # type: ignore[arg-type]
