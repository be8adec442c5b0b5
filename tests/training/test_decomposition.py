"""Brown's decomposition: exact for two members, known for members that agree or know nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squint import information
from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.quantize import calibrate, quantize
from squint.training import decomposition
from squint.training.decomposition import decompose

CLASSES = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int, hidden: int = 6) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed)))
    return net


def reader(scale: float = 1e3) -> nn.Module:
    """A network that says the class whose pixel is the brightest, with certainty for a large scale."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES, bias=False))
    with torch.no_grad():
        net.get_parameter("1.weight").copy_(scale * torch.eye(4))
    return net


def images(n: int = 200) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % CLASSES
    x = 0.5 * torch.rand(n, 4, generator=generator(3)) + 0.5 * F.one_hot(y, 4)
    return x.view(n, 1, 2, 2), y


def joint_information(p: Tensor, q: Tensor, y: Tensor) -> float:
    """I(Ŷ_1, Ŷ_2; Y) from the table of all three labels, cell by cell."""
    table = torch.einsum("ni,nj,nk->ijk", p, q, F.one_hot(y, CLASSES).double()) / len(y)
    total = 0.0
    for pair in table.flatten(0, 1):
        for k in range(CLASSES):
            joint = float(pair[k])
            if joint > 0:
                total += joint * math.log(joint / (float(pair.sum()) * float(table[:, :, k].sum())))
    return total


def test_total_of_two_members_is_their_joint_information() -> None:
    x, y = images()
    nets = [network(0), network(1)]
    p, q = (net(x).double().softmax(-1).detach() for net in nets)
    terms = decompose(Ensemble(nets), x, y, 1, generator(), correction="none")
    assert terms["total"] == pytest.approx(joint_information(p, q, y), abs=1e-6)
    assert terms["label_entropy"] == pytest.approx(math.log(CLASSES))
    assert 0 < terms["relevance"] < math.log(CLASSES)


@pytest.mark.parametrize("correction", ["none", "miller_madow"])
def test_three_perfect_members_share_all_there_is_and_nothing_given_the_label(correction: str) -> None:
    x, y = images(400)
    terms = decompose(Ensemble([reader()] * 3), x, y, 2, generator(), correction=correction)
    # The correction takes off (4 − 1)²/2n of hard labels in independent cells; of a diagonal table it adds.
    slack = 1e-3 if correction == "none" else 4**2 / 400
    assert terms["relevance"] == pytest.approx(math.log(CLASSES), abs=slack)
    assert terms["redundancy"] == pytest.approx(math.log(CLASSES), abs=slack)
    assert terms["conditional_redundancy"] == pytest.approx(0, abs=slack)
    # Three members minus three pairs: pairs alone count what is shared by all three once too often.
    assert terms["total"] == pytest.approx(0, abs=6 * slack)


def test_members_that_err_together_share_information_given_the_label() -> None:
    x, y = images(400)
    wrong = y.clone()
    wrong[:200] = (y[:200] + 1 + torch.randint(3, (200,), generator=generator())) % CLASSES
    x = (0.5 * F.one_hot(wrong, 4)).float().view(-1, 1, 2, 2)
    together = decompose(Ensemble([reader(), reader()]), x, y, 1, generator(), correction="none")
    entropy = sum(
        float(torch.special.entr(torch.bincount(wrong[y == c], minlength=4) / 100.0).sum()) / 4
        for c in range(CLASSES)
    )
    assert together["conditional_redundancy"] == pytest.approx(entropy, abs=1e-4)
    assert together["total"] == pytest.approx(together["relevance"], abs=1e-4)


def test_members_that_know_nothing_have_no_terms() -> None:
    x, y = images()
    terms = decompose(Ensemble([reader(0.0), reader(0.0)]), x, y, 1, generator(), correction="none")
    for name in ("relevance", "redundancy", "conditional_redundancy", "total"):
        assert terms[name] == pytest.approx(0, abs=1e-9)


def test_renyi_terms_are_those_of_the_loss_on_one_draw() -> None:
    x, y = images(60)
    nets = [network(0), network(1, hidden=9), network(2)]
    ens = Ensemble(nets)
    terms = decompose(ens, x, y, 1, generator(), batch_size=25)
    features = [F.normalize(z.detach(), dim=1) for z in ens.features(x)]
    pairs = 3
    assert terms["renyi_redundancy"] == pytest.approx(
        float(information.redundancy(features)) / pairs, abs=1e-5
    )
    assert terms["renyi_conditional_redundancy"] == pytest.approx(
        float(information.conditional_redundancy(features, y)) / pairs, abs=1e-5
    )


def test_renyi_terms_look_at_the_first_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "RENYI_ROWS", 40)
    x, y = images(100)
    ens = Ensemble([network(0), network(1)])
    some = decompose(ens, x, y, 1, generator(), batch_size=30)
    few = decompose(ens, x[:40], y[:40], 1, generator(), batch_size=30)
    for name in ("renyi_redundancy", "renyi_conditional_redundancy"):
        assert some[name] == pytest.approx(few[name], abs=1e-6)


def test_one_member_has_relevance_alone() -> None:
    x, y = images()
    terms = decompose(Ensemble([network(0)]), x, y, 1, generator())
    assert terms["total"] == terms["relevance"] > 0
    for name in ("redundancy", "conditional_redundancy", "renyi_redundancy", "renyi_conditional_redundancy"):
        assert terms[name] == 0


def noisy() -> Ensemble:
    nets = [quantize(network(seed), 4, 4, 1) for seed in (0, 1)]
    ens = Ensemble(nets)
    calibrate(ens, images()[0])
    return ens


def test_a_stochastic_ensemble_is_reproducible_and_left_as_it_was() -> None:
    x, y = images(50)
    ens = noisy().train()
    ens.members[0].eval()
    modes = [module.training for module in ens.modules()]
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in ens.state_dict().items()}
    first, again, other = (decompose(ens, x, y, 4, generator(s)) for s in (1, 1, 2))
    assert first == again != other
    assert [module.training for module in ens.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], value) for name, value in ens.state_dict().items())
    assert all(parameter.grad is None for parameter in ens.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.full((4, 1, 2, 2), 2.0)}, "images has values"),
        ({"y": torch.full((4,), 9)}, "labels has values"),
        ({"y": torch.zeros(3, dtype=torch.long)}, "labels has shape"),
        ({"draws": 0}, "draws is 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"x": images(4)[0], "y": images(4)[1], "draws": 1}
    with pytest.raises(InputError, match=words):
        decompose(Ensemble([network(0)]), **(arguments | change), generator=generator())


def test_members_without_parameters_are_decomposed() -> None:
    nets = [reader(), reader()]
    for net in nets:
        linear = net.get_submodule("1")
        weight = net.get_parameter("1.weight").detach()
        del linear.weight
        linear.register_buffer("weight", weight)
    ens = Ensemble(nets)
    assert not list(ens.parameters())
    x = torch.rand(8, 1, 2, 2, generator=generator())
    terms = decompose(ens, x, torch.arange(8) % CLASSES, 1, generator())
    assert terms["label_entropy"] == pytest.approx(math.log(4))
