"""Training in two processes (gloo) against one process on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.processes import finish, start
from tests.training.distributed_job import everything
from tests.training.nets import toy_data

from squint import _ranks

JOB = "tests.training.distributed_job"
Found = dict[str, Any]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found]:
    """What one process found, and what each of two did."""
    folder = tmp_path_factory.mktemp("jobs")
    processes = start(2, ["-m", JOB, str(folder)])
    one = everything()
    for code, written in finish(processes, 600):
        assert code == 0, written
        assert not written, "several processes are not announced"
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return one, first, second


@pytest.mark.parametrize("kind", ["norm 1d", "norm 2d"])
def test_batch_statistics_are_those_of_the_joined_batch(jobs: tuple[Found, Found, Found], kind: str) -> None:
    one, first, second = (found[kind] for found in jobs)
    # Inputs lie at 100 +- 3: float32 holds their mean to 1e-5, which is 3e-6 of a standard deviation.
    near: Any = {"rtol": 1e-5, "atol": 2e-5}
    for (y, gradient), (y_1, gradient_1) in zip(one["passes"], first["passes"], strict=True):
        torch.testing.assert_close(y_1, y, **near)
        torch.testing.assert_close(gradient_1, gradient, **near)
        assert gradient.abs().max() > 0.005
    torch.testing.assert_close(first["gradients"], one["gradients"], **near)
    torch.testing.assert_close(first["state"], one["state"], **near)
    assert int(one["state"]["num_batches_tracked"]) == 2
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name


@pytest.mark.parametrize("name", ["redundancy", "conditional_redundancy"])
def test_information_is_that_of_the_joined_batch_gradient_included(
    jobs: tuple[Found, Found, Found], name: str
) -> None:
    (value, gradient), *others = (found["information"][name] for found in jobs)
    assert value.abs() > 0.01
    assert gradient.abs().max() > 0.01
    for value_p, gradient_p in others:
        # Sums of a dozen terms of size 1, in another order.
        torch.testing.assert_close(value_p, value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient_p, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", ["plain", "full", "curvature"])
def test_two_processes_train_as_one_does_without_noise(
    jobs: tuple[Found, Found, Found], training: str
) -> None:
    one, first, second = (found[training] for found in jobs)
    for epoch, epoch_p in zip(one["terms"], first["terms"], strict=True):
        assert epoch_p == pytest.approx(epoch, rel=1e-5, abs=1e-6)
    moved = 0.0
    for name, value in one["state"].items():
        # Four steps of rounding errors in float64; the weight average is in the same type.
        torch.testing.assert_close(first["state"][name], value, rtol=1e-8, atol=1e-9, msg=name)
        assert torch.equal(first["state"][name], second["state"][name]), name
        if name.endswith("weight") and value.is_floating_point():
            moved = max(moved, float((value - jobs[0]["start"][name]).abs().max()))
    # What training changed is far above what the number of processes does.
    assert moved > 1e-4


def test_every_process_has_its_own_images_and_its_own_noise(jobs: tuple[Found, Found, Found]) -> None:
    one, first, second = (found["streams"] for found in jobs)
    assert not torch.equal(first["noise"], second["noise"])
    assert torch.equal(first["noise"], one["noise"])
    together = torch.stack([first["x"], second["x"]], 1).flatten(0, 1)
    assert torch.equal(together, one["x"])
    assert len(toy_data()[0]) > len(together)


def test_processes_tell_each_other_what_they_know(jobs: tuple[Found, Found, Found]) -> None:
    for rank, found in enumerate(each["told"] for each in jobs[1:]):
        assert found["exchange"] == ["process 0", "process 1"]
        assert found["first"] == "process 0"
        assert (found["any"], found["none"], found["agreed"]) == (True, False, 3)
        assert found["disagreement"].startswith(
            "the rank is 0 in process 0 and 1 in process 1; needed: the same"
        )
        assert found["failure"] == ("ZeroDivisionError", "FailedElsewhere")[rank]


def test_alone_a_process_hears_itself() -> None:
    x = torch.arange(3.0, requires_grad=True)
    assert _ranks.joined(x) is x
    assert torch.equal(_ranks.gathered(x), x[None])
    assert _ranks.exchange("word") == ["word"]
    assert _ranks.first(lambda: "word") == "word"
    assert _ranks.any_of(True)
    assert (_ranks.count(), _ranks.rank(), _ranks.started()) == (1, 0, 1)
