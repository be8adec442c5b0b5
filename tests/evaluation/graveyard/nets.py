"""Published defences that fell, small, on digits; each shows what its paper attacked and what it hides."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import squint
from squint import _random
from squint import attacks as A
from squint.data.digits import digits
from squint.ensemble import log_mean_probability
from squint.evaluation.scoring import score

EPS = 0.2
"""Where PGD leaves nothing of an undefended network on digits."""


@cache
def images(count: int = 100) -> tuple[Tensor, Tensor]:
    test = digits().test
    return test.images[:count].float() / 255, test.labels[:count]


@cache
def _training() -> tuple[Tensor, Tensor]:
    train = digits().train
    return train.images.float() / 255, train.labels


def small_cnn(seed: int, width: int = 8) -> nn.Module:
    net = squint.models.small_cnn(width=width)
    seeded(net, seed)
    return net


def seeded(net: nn.Module, seed: int) -> None:
    """Draw weights again from a generator of their own: torch's constructors use the global one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                spread = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            elif name.endswith("bias"):
                parameter.zero_()


def fit(net: nn.Module, epochs: int = 10) -> nn.Module:
    config = squint.TrainConfig(epochs=epochs, learning_rate=0.01, accelerator="cpu")
    squint.fit(squint.Ensemble([net]), _training(), config)
    return net.eval().requires_grad_(False)


def train(
    net: nn.Module, *, epochs: int = 10, seed: int = 0, attack: Callable[..., Tensor] | None = None
) -> nn.Module:
    """Train any callable on clean images, or on what `attack(net, x, y, generator=...)` makes of them."""
    x, y = _training()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator)[:1024].view(-1, 64):
            shown = x[batch] if attack is None else attack(net, x[batch], y[batch], generator=generator)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(net.train()(shown), y[batch]))
            optimizer.step()
    optimizer.zero_grad()
    return net.eval().requires_grad_(False)


@cache
def undefended() -> nn.Module:
    return fit(small_cnn(0))


@cache
def stochastic() -> squint.Ensemble:
    """An honest stochastic ensemble: noise at both inputs and at one member's activations."""
    nets = [
        squint.quantize(small_cnn(1, width=4), 4, 4, 2),
        squint.quantize(small_cnn(2, width=4), 4, None, 3, first_last_bits=None),
    ]
    ens = squint.Ensemble(nets, draws=4)
    squint.fit(ens, _training(), squint.TrainConfig(epochs=10, learning_rate=0.01, accelerator="cpu"))
    return ens.eval().requires_grad_(False)


class Vote(nn.Module):
    """EMPIR (Sen et al. 2020): members of low precision vote; a vote has no gradient."""

    draws_noise = False

    def __init__(self, members: squint.Ensemble) -> None:
        super().__init__()
        self.ensemble = members

    def forward(self, x: Tensor) -> Tensor:
        votes = self.ensemble.member_logits(x, 1)[0].argmax(-1)
        return F.one_hot(votes, 10).float().sum(0)


@cache
def empir() -> Vote:
    bits = ((1, 2), (2, 2), (4, 4))
    nets = [fit(squint.quantize(small_cnn(seed), *pair, 4, width=0.0)) for seed, pair in enumerate(bits)]
    return Vote(squint.Ensemble(nets, draws=1)).eval()


class RandomPick(nn.Module):
    """One member, drawn for each call (Pinot et al. 2020)."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        pick = int(torch.randint(len(self.members), (), generator=_random.default_generator()))
        return cast(Tensor, self.members[pick](x))


@cache
def random_pair() -> RandomPick:
    def attack(net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return A.pgd(net, x, y, eps=EPS / 2, steps=3, step_size=EPS / 4, generator=generator)

    return RandomPick(
        [train(small_cnn(seed), epochs=6, seed=seed, attack=attack) for seed in (11, 12)]
    ).eval()


class KWinners(nn.Module):
    """k-winners-take-all (Xiao, Zhong and Zheng 2020): only the largest activations pass."""

    draws_noise = False

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        least = x.topk(max(int(self.share * x.shape[1]), 1), dim=1).values[:, -1:]
        return x * (x >= least)


@cache
def k_winners() -> nn.Module:
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 1024),
        KWinners(0.05),
        nn.Linear(1024, 512),
        KWinners(0.05),
        nn.Linear(512, 10),
    )
    seeded(net, 5)
    return train(net, epochs=12)


class ZeroGradientInput(nn.Module):
    """A quantizer whose surrogate is left out: rounding has slope zero."""

    draws_noise = False

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net((x * (self.levels - 1)).round() / (self.levels - 1)))


@cache
def zero_gradient() -> nn.Module:
    return ZeroGradientInput(undefended(), 8).eval()


class Scaled(nn.Module):
    """Logits so large that the cross-entropy of a right answer has no gradient in any float."""

    draws_noise = False

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(x)) * self.scale


@cache
def binarized() -> nn.Module:
    return Scaled(fit(squint.quantize(small_cnn(3), 1, 1, None, width=0.0)), 1e4).eval()


class CrossMax(nn.Module):
    """A self-ensemble of linear probes behind input noise, aggregated by cross-max (Fort et al. 2024)."""

    def __init__(self, net: nn.Module, noise: float) -> None:
        super().__init__()
        self.net, self.noise = net, noise
        self.probes = nn.ModuleList(nn.LazyLinear(10) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the cross-max of one draw."""
        logits = self.probe_logits(x)
        if self.training:
            return logits.mean(0)
        logits = logits - logits.amax(-1, keepdim=True)
        logits = logits - logits.amax(0, keepdim=True)
        return logits.median(0).values

    def probe_logits(self, x: Tensor) -> Tensor:
        net = cast(squint.models.networks.SmallCNN, self.net)
        noise = torch.randn(x.shape, generator=_random.default_generator())
        h = net.normalize(x + self.noise * noise)
        outputs = []
        for layer, probe in zip((net.conv1, net.conv2, net.conv3), self.probes, strict=True):
            h = F.relu(layer(h))
            outputs.append(probe(h.flatten(1)))
        return torch.stack(outputs)


class Probes(nn.Module):
    """The probes of a `CrossMax` as members: what the attacker pools instead of the cross-max."""

    def __init__(self, defence: CrossMax) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, x: Tensor) -> Tensor:
        return log_mean_probability(self.defence.probe_logits(x))


@cache
def cross_max() -> CrossMax:
    net = CrossMax(small_cnn(7), noise=0.2)
    net(torch.zeros(2, 1, 8, 8))
    for seed, probe in enumerate(net.probes):
        seeded(probe, seed)
    return cast(CrossMax, train(net, seed=7))


def accuracy(model: nn.Module, points: Tensor, draws: int = 1) -> float:
    """Return the deployed accuracy on the first images, attacked or not."""
    y = images()[1][: len(points)]
    return score(model, points, y, draws=draws, resubmissions=16, seed=0, keys=("graveyard",)).accuracy
