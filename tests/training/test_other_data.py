"""A checkpoint knows the data of its training: others, however alike in shape, are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.training.nets import ensemble, toy_data
from tests.training.settings import config, same
from tests.training.test_resume import stopping_at
from torch import Tensor

from squint._checks import InputError
from squint._files import read_tensors, write_tensors
from squint.training import TrainingStopped, Watcher, fit
from squint.training.checkpoint import data_digest


def stopped(path: Path) -> None:
    """Leave the checkpoint of a training that was stopped after its first step."""
    with pytest.raises(TrainingStopped):
        fit(ensemble(), toy_data(), config(), checkpoint=path, watcher=stopping_at(1))


def changed(images: Tensor, labels: Tensor, what: str) -> tuple[Tensor, Tensor]:
    images, labels = images.clone(), labels.clone()
    if what == "a pixel":
        images[-1, 0, -1, -1] = 1 - images[-1, 0, -1, -1]
    elif what == "a label":
        labels[-1] = (labels[-1] + 1) % 2
    else:
        images, labels = images.flip(0), labels.flip(0)
    return images, labels


@pytest.mark.parametrize("what", ["a pixel", "a label", "the order"])
def test_other_data_of_the_same_shapes_is_refused_and_nothing_is_trained(what: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    stopped(path)
    content = path.read_bytes()
    untouched = Watcher(on_step=lambda *_: pytest.fail("was trained"))
    with pytest.raises(InputError, match=r"is of a training on other images or labels .*those that it was"):
        fit(ensemble(), changed(*toy_data(), what), config(), checkpoint=path, watcher=untouched)
    assert path.read_bytes() == content


def test_a_checkpoint_from_before_data_was_kept_goes_on(tmp_path: Path) -> None:
    path, whole = tmp_path / "checkpoint", ensemble()
    fit(whole, toy_data(), config())
    stopped(path)
    tensors, metadata = read_tensors(path)
    header = json.loads(metadata["squint_checkpoint"])
    assert header["recipe"].pop("data") == data_digest(*toy_data())
    write_tensors(path, tensors, {"squint_checkpoint": json.dumps(header)})
    ens = ensemble()
    fit(ens, toy_data(), config(), checkpoint=path)
    assert same(ens, whole)


def test_the_digest_tells_kinds_and_shapes_apart() -> None:
    zeros = torch.zeros(4, 2)
    same_bytes = (zeros, zeros.int(), zeros.view(2, 4), zeros[:2])
    assert len({data_digest(images, zeros) for images in same_bytes}) == 4
    assert data_digest(zeros.t().contiguous().t(), zeros) == data_digest(zeros, zeros)
