from __future__ import annotations

import pytest
import torch
from torch import nn

import squint
from squint._random import draw_noise, next_seed, next_seeds
from squint.ensemble import Ensemble, log_mean_probability, varies
from tests.members import BATCH, ForeignNoise, counted, images, noisy, plain, source


def test_member_logits_are_draws_members_batch_classes() -> None:
    ens = Ensemble([noisy(), plain(seed=2), noisy(granularity="tensor")], draws=3)
    assert ens.member_logits(images(), 3).shape == (3, 3, BATCH, 4)
    assert ens.member_logits(images(1), 1).shape == (1, 3, 1, 4)


def test_forward_is_the_logarithm_of_the_mean_probability() -> None:
    ens = Ensemble([noisy(), plain(seed=2)], draws=3)
    with squint.noise(source()):
        logits = ens.member_logits(images(), 3)
    with squint.noise(source()):
        output = ens(images())
    torch.testing.assert_close(output.exp(), logits.softmax(-1).mean((0, 1)))
    torch.testing.assert_close(output.exp().sum(1), torch.ones(BATCH))
    assert ens.draws == 3


def test_the_log_mean_probability_of_certain_members_is_finite() -> None:
    logits = torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]]])
    torch.testing.assert_close(log_mean_probability(logits).exp(), torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("granularity", ["element", "tensor"])
def test_the_chunk_never_changes_a_result(granularity: str, stratified: bool) -> None:
    members = [noisy(granularity=granularity), plain(seed=2)]
    wanted = None
    for chunk in (1, 2 * BATCH, 3 * BATCH + 2, 1000):
        ens = Ensemble(members, chunk=chunk)
        logits = ens.member_logits(images(), 7, generator=source(), stratified=stratified)
        wanted = logits if wanted is None else wanted
        # Kernels may sum in another order at another batch size: a few units in the last place.
        torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-6)


def test_the_chunk_bounds_the_images_of_a_pass() -> None:
    net = noisy()
    sizes = counted(net)
    Ensemble([net], chunk=2 * BATCH + 1).member_logits(images(), 5)
    assert sizes == [2 * BATCH, 2 * BATCH, BATCH]


def test_draws_have_noise_of_their_own_and_depend_on_their_seed_alone() -> None:
    net = noisy()
    ens = Ensemble([plain(seed=2), net])
    logits = ens.member_logits(images(), 4, generator=source())[:, 1]
    generator = source()
    _ = next_seeds(generator, 4), next_seed(generator)
    for seed, drawn in zip(next_seeds(generator, 4), logits, strict=True):
        with draw_noise([seed]):
            torch.testing.assert_close(net(images()), drawn, rtol=1e-5, atol=1e-6)
    assert all(not torch.equal(logits[i], logits[j]) for i in range(4) for j in range(i))


def test_stratified_draws_of_an_input_cover_the_range_evenly() -> None:
    # One quantizer of one bit: of N stratified draws of x, exactly round(N x) or its neighbours are 1.
    quantizer = squint.StochasticQuantizer(1)
    net = nn.Sequential(quantizer, nn.Flatten(), nn.Linear(36, 36, bias=False))
    nn.init.eye_(net[2].weight)  # type: ignore[arg-type]
    draws = 20
    logits = Ensemble([net], chunk=3 * BATCH).member_logits(
        images(), draws, generator=source(), stratified=True
    )
    counts = logits[:, 0].sum(0)
    assert float((counts - draws * images().flatten(1)).detach().abs().max()) <= 1 + 1e-4


def test_still_members_run_once_for_all_draws() -> None:
    net = plain()
    sizes = counted(net)
    logits = Ensemble([net]).member_logits(images(), 6)
    assert sizes == [BATCH]
    assert logits.shape[0] == 6
    assert torch.equal(logits, logits[:1].expand_as(logits))
    nearest = noisy()
    squint.set_rounding(nearest, "nearest")
    sizes = counted(nearest)
    Ensemble([nearest]).member_logits(images(), 6)
    assert sizes == [BATCH]


def test_networks_that_may_draw_noise_of_their_own_run_once_per_draw() -> None:
    net = ForeignNoise()
    ens = Ensemble([net])
    logits = ens.member_logits(images(), 4, generator=source())
    assert net.batches == [BATCH] * 4
    assert len({round(v, 6) for v in logits[:, 0, 0, 0].tolist()}) == 4
    assert torch.equal(ens.member_logits(images(), 4, generator=source()), logits)


def test_dropout_and_inner_ensembles_are_noise_of_their_own() -> None:
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))
    assert varies(dropout.train())
    assert not varies(dropout.eval())
    sizes = counted(dropout.train())
    logits = Ensemble([dropout]).member_logits(images(), 3, generator=source())
    assert sizes == [BATCH] * 3
    assert torch.equal(Ensemble([dropout]).member_logits(images(), 3, generator=source()), logits)
    attention = nn.MultiheadAttention(4, 2, dropout=0.1)
    assert varies(attention.train())
    assert not varies(attention.eval())
    inner = Ensemble([noisy()], draws=2)
    outer = Ensemble([inner], chunk=1000)
    one = Ensemble([inner], chunk=1)
    assert torch.equal(
        outer.member_logits(images(), 3, generator=source()),
        one.member_logits(images(), 3, generator=source()),
    )


def test_noisy_weights_run_draw_by_draw() -> None:
    net = noisy(weight_width=1.0)
    sizes = counted(net)
    logits = Ensemble([net]).member_logits(images(), 3, generator=source())
    assert sizes == [BATCH] * 3
    seeds = next_seeds(source(), 3)
    for seed, drawn in zip(seeds, logits[:, 0], strict=True):
        with draw_noise([seed]):
            assert torch.equal(net(images()), drawn)


def test_members_that_normalize_by_the_batch_see_all_draws_in_one() -> None:
    results = []
    for chunk in (1, 1000):
        net = noisy().train()
        sizes = counted(net)
        results.append(Ensemble([net], chunk=chunk).member_logits(images(), 3, generator=source()))
        assert sizes == [3 * BATCH]
        norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
        assert int(norm.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert torch.equal(*results)


def test_generators_reproduce_and_torchs_own_is_left_alone() -> None:
    ens = Ensemble([noisy(), ForeignNoise()])
    state = torch.get_rng_state()
    first = ens.member_logits(images(), 2, generator=source(3))
    assert torch.equal(ens.member_logits(images(), 2, generator=source(3)), first)
    assert not torch.equal(ens.member_logits(images(), 2, generator=source(4)), first)
    with squint.noise(source(3)):
        assert torch.equal(ens.member_logits(images(), 2), first)
    squint.seed(3)
    assert torch.equal(ens.member_logits(images(), 2), first)
    assert not torch.equal(ens.member_logits(images(), 2), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_one_member_draws_does_not_depend_on_the_others() -> None:
    net = noisy()
    still, moving = Ensemble([plain(), net]), Ensemble([noisy(width=0.5), net])
    a = still.member_logits(images(), 3, generator=source())[:, 1]
    b = moving.member_logits(images(), 3, generator=source())[:, 1]
    assert torch.equal(a, b)
