from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from squint.data import load
from squint.data.digits import digits


def test_sizes_and_names() -> None:
    splits = digits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1097, 200, 500)
    assert splits.train.shape == (1, 8, 8)
    assert splits.test.class_names == tuple("0123456789")


def test_the_splits_are_the_whole_set_once_each() -> None:
    splits = digits()
    found = torch.cat([part.images for part in (splits.train, splits.validation, splits.test)])
    bunch = load_digits()
    expected = torch.tensor([[[round(v * 255 / 16) for v in row] for row in image] for image in bunch.images])
    rows = sorted(map(tuple, found.flatten(1).tolist()))
    assert rows == sorted(map(tuple, expected.flatten(1).tolist()))
    assert {0, 16, 128, 255} <= set(found.flatten().tolist())


def test_labels_go_with_their_images() -> None:
    bunch = load_digits()
    images = (torch.tensor(bunch.images) * 255 / 16).round().to(torch.uint8)
    label_of = {tuple(x.flatten().tolist()): int(y) for x, y in zip(images, bunch.target, strict=True)}
    test = digits().test
    assert [label_of[tuple(x.flatten().tolist())] for x in test.images] == test.labels.tolist()


def test_classes_are_balanced() -> None:
    splits = digits()
    for part in (splits.validation, splits.test):
        share = part.labels.bincount(minlength=10) / len(part)
        assert ((share - 0.1).abs() < 0.01).all()


def test_the_seed_moves_validation_images_and_never_test_images() -> None:
    first, again, other = digits(seed=0), digits(seed=0), digits(seed=1)
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)
    assert torch.equal(first.test.images, other.test.images)


def test_load_passes_the_validation_size_on() -> None:
    assert len(load("digits").validation) == 200
    assert len(load("digits", validation=0.5).validation) == 648
    assert len(load("digits", validation=0).train) == 1297
