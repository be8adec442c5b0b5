from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import squint
from squint._checks import InputError, InputTypeError
from squint._random import draw_noise, next_seed, next_seeds
from squint.ensemble import Ensemble, log_mean_probability, varies
from squint.models import small_cnn
from squint.quantize import QuantizedNetwork

BATCH = 5


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = BATCH) -> Tensor:
    return torch.rand(batch, 1, 6, 6, generator=source(7))


def plain(*, classes: int = 4, norm: bool = False, seed: int = 1) -> nn.Sequential:
    """A network of torch's own layers, with fixed weights."""
    layers: list[nn.Module] = [nn.Conv2d(1, 3, 3, padding=1)]
    layers += [nn.BatchNorm2d(3)] if norm else []
    net = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(108, 7), nn.ReLU(), nn.Linear(7, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source(seed)))
    return net.eval()


@cache
def calibrated(**settings: float | str) -> QuantizedNetwork:
    net = squint.quantize(plain(norm=True), 3, 3, 2, **settings)  # type: ignore[arg-type]
    squint.calibrate(net, images(16))
    return net


def noisy(**settings: float | str) -> QuantizedNetwork:
    return copy.deepcopy(calibrated(**settings))


class ForeignNoise(nn.Module):
    """Somebody's own noise: one number per forward pass, from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        logits: Tensor = self.net(x)
        return logits + torch.rand(())


class Reversed(nn.Module):
    """Defines its head before its body: the order of definition is not that of running."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.body = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.flatten(1)).relu())
        return logits


def counted(net: nn.Module) -> list[int]:
    """Return a list that grows by the batch size of every forward pass of `net`."""
    sizes: list[int] = []
    net.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    return sizes


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


def test_features_are_the_float_input_of_the_layer_that_runs_last() -> None:
    net, wild = noisy(), Reversed()
    ens = Ensemble([net, plain(seed=2), wild])
    seen: dict[nn.Module, Tensor] = {}
    last = [net.network[6], ens.members[1][5], wild.head]  # type: ignore[index]
    for layer in last:
        layer.register_forward_pre_hook(lambda module, inputs: seen.__setitem__(module, inputs[0]))
    with squint.noise(source()):
        features = ens.features(images())
    for layer, z in zip(last, features, strict=True):
        assert torch.equal(z, seen[layer])
        assert z.shape == (BATCH, layer.in_features)
    # Not the quantized input, which is whole multiples of its step.
    quantizer = net.network[6].activation_quantizer  # type: ignore[index]
    assert isinstance(quantizer, squint.StochasticQuantizer)
    multiples = features[0] / quantizer.step
    assert float((multiples - multiples.round()).detach().abs().max()) > 0.1


def test_features_come_from_the_first_draw_of_the_same_pass() -> None:
    foreign = ForeignNoise()
    ens = Ensemble([noisy(), foreign])
    logits, features = ens.logits_and_features(images(), 3, generator=source())
    assert torch.equal(logits, ens.member_logits(images(), 3, generator=source()))
    noise = (logits[0, 1] - foreign.net[5](features[1])).flatten()
    assert float((noise - noise[0]).detach().abs().max()) < 1e-5
    assert all(z.requires_grad for z in features)
    assert not any(module._forward_pre_hooks for module in ens.modules())


def test_a_named_layer_gives_the_features() -> None:
    net = squint.quantize(plain(), 3, 3, 2, features="3")
    squint.calibrate(net, images(64))
    assert Ensemble([net]).features(images())[0].shape == (BATCH, 108)


def test_features_need_a_layer_that_sees_images_row_by_row() -> None:
    for net in (
        nn.Flatten(),
        nn.Sequential(nn.Flatten(0), nn.Linear(36 * BATCH, 2), nn.Unflatten(0, (1, 2))),
    ):
        with pytest.raises(InputError, match=r"name the layer|model returned"):
            Ensemble([net]).features(images())


def test_gradients_reach_images_and_weights() -> None:
    ens = Ensemble([noisy(), plain(seed=2)], draws=2)
    x = images().requires_grad_()
    ens(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is not None for p in ens.members[1].parameters())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Ensemble([]), InputError, "members is empty"),
        (lambda: Ensemble([plain(), "net"]), InputTypeError, r"members\[1\] is str"),  # type: ignore[list-item]
        (lambda: Ensemble(nn.Flatten()), InputTypeError, "needed: a list"),  # type: ignore[arg-type]
        (lambda: Ensemble([plain()], 0), InputError, "draws is 0"),
        (lambda: Ensemble([plain()], 1.5), InputError, "draws is 1.5"),  # type: ignore[arg-type]
        (lambda: Ensemble([plain()], chunk=0), InputError, "chunk is 0"),
        (lambda: Ensemble([plain()])(images() * 255), InputError, "allowed: \\[0, 1\\]"),
        (lambda: Ensemble([plain()])(images() * float("nan")), InputError, "NaN"),
        (lambda: Ensemble([plain()]).features(images() - 1), InputError, "allowed: \\[0, 1\\]"),
        (lambda: Ensemble([plain()]).member_logits(images().byte()), InputError, "dtype torch.uint8"),
        (lambda: Ensemble([plain()]).member_logits(images()[:0]), InputError, "non-empty"),
        (lambda: Ensemble([plain()]).member_logits([[0.5]]), InputTypeError, "torch.Tensor"),  # type: ignore[arg-type]
        (lambda: Ensemble([plain()]).member_logits(images(), 0), InputError, "draws is 0"),
        (lambda: Ensemble([plain(), plain(classes=3)])(images()), InputError, r"members\[1\] has 3 classes"),
        (lambda: Ensemble([nn.Identity()])(images()), InputError, "model returned shape"),
        (lambda: Ensemble([small_cnn(4, 3, 2)])(torch.rand(2, 2, 8, 8)), InputError, "have shape"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
