"""What an evaluation does where memory is short: it holds fewer draws at once and goes on."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import squint
from squint import attacks
from squint.ensemble import Ensemble
from squint.evaluation import AttackSetting, evaluate
from squint.evaluation.machine import Fitting
from tests.evaluation.ladder_models import NoisyPair, pair_data, small_ensemble

EPS = 0.05
EOT = AttackSetting("pgd-eot8", steps=10, eot=8)
"""Ten steps of eps/4 cross the ball from any start."""


class Held:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def most_kept(run: Any, parameters: list[Tensor]) -> int:
    """Most bytes that graphs keep at any one time while `run()` runs, parameters and repeats apart."""
    now = most = 0
    held: dict[int, int] = {parameter.untyped_storage().data_ptr(): 1 for parameter in parameters}

    def drop(place: int, size: int) -> None:
        nonlocal now
        held[place] -= 1
        if held[place] == 0:
            now -= size

    def pack(tensor: Tensor) -> Held:
        nonlocal now, most
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not held.get(place):
            held[place] = 0
            now += size
            most = max(most, now)
        held[place] += 1
        kept = Held(tensor)
        weakref.finalize(kept, drop, place, size)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        run()
    return most


def convolutional(members: int) -> Ensemble:
    """An ensemble whose gradients keep activations, not weights, in memory."""
    nets: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for place in range(members):
            torch.manual_seed(place)
            net = squint.models.small_cnn(4, 1, 4)
            nets.append(squint.quantize(net, 2 + place, 4, 2, activation_width=0.0))
    for net in nets:
        squint.calibrate(net, torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(1)))
    return Ensemble(nets).eval()


def test_chunks_keep_eot_64_on_three_members_within_the_memory_of_the_chunk() -> None:
    ens = convolutional(3)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 16, 16, generator=generator), torch.randint(4, (2,), generator=generator)
    parameters = [*ens.parameters(), *ens.buffers()]

    def kept(chunk: int | None, eot: int = 64) -> int:
        def run() -> None:
            attacks.fgsm(ens, x, y, eps=EPS, eot=eot, chunk=chunk, generator=torch.Generator().manual_seed(3))

        return most_kept(run, parameters)

    whole, four = kept(None), kept(4)
    # Each draw keeps as much as any other. A fifth is left for the loss head, which holds all logits.
    assert four < 1.2 * whole * 4 / 64
    assert four == pytest.approx(kept(None, eot=4), rel=0.2)


def test_evaluation_goes_on_with_half_the_draws_where_memory_runs_out() -> None:
    model = NoisyPair(members=3)
    data = pair_data(model, 6, 0.8)
    wanted = evaluate(model, data, EPS, [EOT], resubmissions=64, batch_size=3)
    model.largest = 3
    got = evaluate(model, data, EPS, [EOT], resubmissions=64, batch_size=3)
    # Held two at a time, the draws are others, whose signs all agree on this model's one worst corner.
    x, y = data
    worst = model.worst(x, y, EPS)
    for report in (wanted, got):
        torch.testing.assert_close(report.outcomes[0].adversarial, worst, atol=1e-6, rtol=0)
    assert got.records[0].clean_accuracy == wanted.records[0].clean_accuracy
    assert got.records[0].robust_accuracy == wanted.records[0].robust_accuracy


def test_evaluation_ends_where_not_even_one_draw_fits() -> None:
    model = NoisyPair()
    data = pair_data(model, 3, 0.8)
    model.largest = 0
    with pytest.raises(RuntimeError, match="out of memory: 1 draws"):
        evaluate(model, data, EPS, [EOT], resubmissions=4)


def test_scores_are_the_same_with_fewer_images_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ens = small_ensemble(2)
    generator = torch.Generator().manual_seed(3)
    data = torch.rand(4, 1, 4, 4, generator=generator), torch.randint(4, (4,), generator=generator)
    wanted = evaluate(ens, data, EPS, ["fgsm"], resubmissions=8)
    seen: list[int] = []
    own = ens.members[0].forward

    def short_of_memory(x: Tensor) -> Tensor:
        seen.append(len(x))
        if len(x) > 5:
            raise MemoryError
        out: Tensor = own(x)
        return out

    monkeypatch.setattr(ens.members[0], "forward", short_of_memory)
    got = evaluate(ens, data, EPS, ["fgsm"], resubmissions=8)
    assert max(seen) > 5
    assert seen[-1] <= 5
    assert [record.robust_accuracy for record in got.records] == [r.robust_accuracy for r in wanted.records]
    assert torch.equal(got.clean_correct, wanted.clean_correct)
    assert ens.chunk == Ensemble(list(ens.members)).chunk


def test_what_fits_is_kept_for_later_batches() -> None:
    fitting = Fitting()
    tried: list[int | None] = []

    def run(draws: int | None) -> str:
        tried.append(draws)
        if draws is None or draws > 2:
            raise RuntimeError("CUDA out of memory")
        return "done"

    assert fitting.gradients(run, 8) == "done"
    assert fitting.gradients(run, 8) == "done"
    assert tried == [None, 4, 2, 2]
