"""The information plane on ensembles whose information and accuracy are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from squint import _random
from squint._checks import InputError, InputTypeError
from squint.ensemble import Ensemble
from squint.evaluation.information_plane import copies, information_plane
from squint.evaluation.plane_estimators import ESTIMATORS
from squint.evaluation.plane_points import plane_rows
from squint.evaluation.plane_profile import PlaneProfile, PlaneRow
from squint.evaluation.threats import PlaneBudget, Setting, Threat
from squint.information import soft_label_mutual_information
from squint.quantize import calibrate, quantize

CLASSES = 4
TINY = PlaneBudget(steps=6, apgd_steps=6, mora_steps=4, square_steps=4, eot=1)
GRADIENT = ("linf-pgd", "l2-pgd", "apgd", "mora", "transfer", "transfer-members")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int, *, shared: float = 0.0, n: int = 64) -> nn.Module:
    """A linear network on 8 by 8 images that looks for the class's quadrant, and a little at random."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(n, CLASSES))
    quadrants = torch.zeros(CLASSES, 8, 8)
    for c in range(CLASSES):
        quadrants[c, 4 * (c // 2) : 4 * (c // 2) + 4, 4 * (c % 2) : 4 * (c % 2) + 4] = 1
    with torch.no_grad():
        noise = torch.randn(CLASSES, n, generator=generator(seed))
        net.get_parameter("1.weight").copy_(quadrants.flatten(1) + 0.3 * (1 - shared) * noise)
        net.get_parameter("1.bias").zero_()
    return net


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % CLASSES
    x = 0.4 * torch.rand(n, 1, 8, 8, generator=generator(7))
    for i, c in enumerate(y.tolist()):
        x[i, 0, 4 * (c // 2) : 4 * (c // 2) + 4, 4 * (c % 2) : 4 * (c % 2) + 4] += 0.15
    return x, y


@pytest.fixture(scope="module")
def noisy() -> Ensemble:
    ens = Ensemble([quantize(network(seed), 4, 4, 2) for seed in range(3)], draws=2)
    calibrate(ens, images()[0])
    return ens.eval()


@pytest.fixture(scope="module")
def profile(noisy: Ensemble) -> PlaneProfile:
    return information_plane(
        noisy,
        images(),
        [*GRADIENT, "square", "noise-linf", "noise-l2", "corruption:contrast"],
        eps=("8/255", "32/255"),
        strengths=(1, 5),
        estimators=ESTIMATORS.keys(),  # type: ignore[arg-type]
        budget=TINY,
        system="three",
        draws=3,
        resubmissions=4,
        bootstrap=5,
        batch_size=30,
        seed=5,
    )


def test_every_threat_has_a_trajectory_and_the_clean_point_is_there_once(profile: PlaneProfile) -> None:
    rows = [row for row in profile.rows if row.estimator == "soft_label"]
    assert [(row.threat, row.eps) for row in rows[:1]] == [("clean", "0")]
    places: dict[str, list[str]] = {}
    for row in rows[1:]:
        places.setdefault(row.threat, []).append(row.eps)
    assert places.pop("corruption:contrast") == ["strength 1", "strength 5"]
    # A ball of 64 dimensions and the cube's volume has the radius 2·(32!)^(1/64)/√π = 4.0355 half sides.
    assert places.pop("l2-pgd") == places.pop("noise-l2") == ["32/255", "129/255"]
    assert places == {
        name: ["8/255", "32/255"]
        for name in ("linf-pgd", "apgd", "mora", "transfer", "transfer-members", "square", "noise-linf")
    }
    assert len(profile.rows) == len(ESTIMATORS) * len(rows)
    assert {row.n for row in profile.rows} == {40}
    assert {row.draws for row in profile.rows if row.layer == "predictions"} == {3}
    assert {row.draws for row in profile.rows if row.layer == "features"} == {1}
    assert {row.strength for row in profile.rows} == {None, 1, 5}


def test_intervals_hold_their_points(profile: PlaneProfile) -> None:
    for row in profile.rows:
        low, high = row.accuracy_ci95
        assert 0 <= low <= row.accuracy <= high <= 1
        assert row.information_ci95[0] <= row.information_ci95[1]
        assert math.isfinite(row.baseline)


def test_attacks_cost_accuracy_and_noise_of_equal_norm_less(profile: PlaneProfile) -> None:
    accuracy = {(r.threat, r.eps): r.accuracy for r in profile.rows if r.estimator == "soft_label"}
    clean = accuracy["clean", "0"]
    for threat in GRADIENT:
        eps = "129/255" if threat == "l2-pgd" else "32/255"
        noise = accuracy["noise-l2", "129/255"] if threat == "l2-pgd" else accuracy["noise-linf", "32/255"]
        assert accuracy[threat, eps] < clean - 0.1
        assert accuracy[threat, eps] < noise


def test_information_of_predictions_is_the_mean_over_pairs_of_draw_means(noisy: Ensemble) -> None:
    x, y = images()
    (row,) = plane_rows(
        noisy, [(x[:30], y[:30]), (x[30:], y[30:])], system="s", threat="t", setting=Setting("1/255", 0.1),
        draws=3, bootstrap=5, seed=2, correct=torch.full((40,), 0.75),
    )  # fmt: skip
    parts = [
        noisy.member_logits(part, 3, generator=_random.derive_generator(2, "plane draws", chunk))
        for chunk, part in enumerate((x[:30], x[30:]))
    ]
    p = torch.cat([part.detach().double().softmax(-1).mean(0) for part in parts], 1)
    pairs = [float(soft_label_mutual_information(p[i], p[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert row.information == pytest.approx(sum(pairs) / 3, abs=1e-9)
    assert row.accuracy == 0.75
    assert row.excess == row.information - row.baseline


def certain(labels: Tensor) -> nn.Module:
    """A member that answers from a table, by the number that the first pixel holds."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            place = (x[:, 0, 0, 0] * 4096).round().long()
            return 1e3 * nn.functional.one_hot(labels[place], CLASSES).float()

    net[0], net[1] = nn.Identity(), Table()
    return net


def numbered(n: int) -> Tensor:
    x = torch.zeros(n, 1, 8, 8)
    x[:, 0, 0, 0] = torch.arange(n) / 4096
    return x


def row_of(tables: list[Tensor], y: Tensor, estimator: str) -> PlaneRow:
    ens = Ensemble([certain(table) for table in tables], draws=1)
    (row,) = plane_rows(
        ens, [(numbered(len(y)), y)], system="s", threat="t", setting=Setting("0", 0.0),
        estimators=[estimator], draws=1, resubmissions=1, bootstrap=20,
    )  # fmt: skip
    return row


def test_members_that_agree_have_the_entropy_and_strangers_the_baseline() -> None:
    n = 1200
    y = torch.arange(n) % CLASSES
    same = row_of([y, y], y, "soft_label")
    assert same.information == pytest.approx(math.log(CLASSES), abs=1e-6)
    assert same.accuracy == 1
    # Shuffled labels of c classes have (c − 1)²/2n nats on average, with a deviation of (c − 1)/(√2·n) each.
    bias, deviation = 9 / (2 * n), 3 / (math.sqrt(2) * n)
    assert abs(same.baseline - bias) < 5 * deviation / math.sqrt(8)
    first, second = (torch.randint(CLASSES, (n,), generator=generator(s)) for s in (1, 2))
    strangers = row_of([first, second], y, "soft_label")
    assert abs(strangers.excess) < 5 * deviation
    assert strangers.accuracy == pytest.approx(1 / CLASSES, abs=0.1)


def test_given_the_label_members_that_are_always_right_share_nothing() -> None:
    y = torch.arange(800) % CLASSES
    assert row_of([y, y], y, "soft_label_conditional").information == pytest.approx(0, abs=1e-6)
    wrong = (y + torch.randint(2, (800,), generator=generator(3))) % CLASSES
    together = row_of([wrong, wrong], y, "soft_label_conditional")
    # One fair coin, shared; with 200 images of each class its plug-in entropy is low by 1/2n = 0.0025.
    assert together.information == pytest.approx(math.log(2), abs=0.02)
    # Shuffled within a class the two coins are strangers; what both know of the label stays.
    assert 0 <= together.baseline < 0.02


def test_equal_arguments_equal_profiles_and_no_trace(noisy: Ensemble) -> None:
    x, y = images(12)
    noisy.train()
    noisy.members[1].eval()
    modes = [module.training for module in noisy.modules()]
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in noisy.state_dict().items()}

    def run(seed: int) -> PlaneProfile:
        threats = ["linf-pgd", "transfer", "corruption:fog"]
        return information_plane(
            noisy, (x, y), threats, eps=["8/255"], strengths=[2], budget=TINY, bootstrap=3, seed=seed
        )

    first = run(0)
    assert first == run(0)
    assert first != run(1)
    assert [module.training for module in noisy.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[k], v) for k, v in noisy.state_dict().items())
    assert all(p.grad is None for p in noisy.parameters())
    noisy.eval()


def test_attack_information_and_score_draw_from_streams_of_their_own(
    noisy: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, tuple[object, ...]] = {}
    original = _random.derive_seed

    def record(base: int, *keys: object) -> int:
        seed = original(base, *keys)
        assert seen.setdefault(seed, keys) == keys
        return seed

    monkeypatch.setattr(_random, "derive_seed", record)
    information_plane(noisy, images(8), ["linf-pgd"], eps=["8/255"], budget=TINY, bootstrap=2)
    purposes = {str(keys[0]) for keys in seen.values()}
    assert {"plane attack", "plane draws", "score", "plane"} <= purposes


def test_threats_of_ones_own_and_progress(noisy: Ensemble) -> None:
    moved: list[tuple[int, int]] = []
    black = Threat("black", lambda _, x, __, eps, ___: x * (1 - eps))
    result = information_plane(
        noisy, images(8), [black], eps=[1.0, "1/2"], bootstrap=2, resubmissions=2,
        progress=lambda done, total: moved.append((done, total)),
    )  # fmt: skip
    assert [row.eps for row in result.rows] == ["0", "255/510", "255/255"]
    assert moved == [(1, 3), (2, 3), (3, 3)]
    assert result.rows[-1].accuracy <= 0.5


class Protocolled:
    """Members without being a module."""

    def __init__(self, ens: Ensemble) -> None:
        self.ens, self.draws = ens, 2

    def member_logits(self, x: Tensor, draws: int = 1, **options: Any) -> Tensor:
        return self.ens.member_logits(x, draws, **options)


def test_any_model_with_members_will_do(noisy: Ensemble) -> None:
    model = Protocolled(noisy)
    threats = ["transfer-members", "noise-linf"]
    result = information_plane(model, images(8), threats, eps=["8/255"], budget=TINY, bootstrap=2)
    assert len(result.rows) == 3
    with pytest.raises(InputError, match="twin of a Protocolled; needed: a module, or sources"):
        information_plane(model, images(8), ["transfer"], eps=["8/255"], budget=TINY)
    with pytest.raises(InputTypeError, match="logits_and_features"):
        information_plane(model, images(8), threats, estimators=["renyi"])


def test_a_single_network_enters_as_copies() -> None:
    ens = copies([network(0), network(1)], draws=1)
    assert len(information_plane(ens, images(8), ["noise-linf"], bootstrap=2).rows) == 4
    alone, hint = network(0), r"copies\(\[net_a, net_b\]\)"
    with pytest.raises(InputTypeError, match=hint):
        information_plane(alone, images(4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"1 member.*{hint}"):
        information_plane(Ensemble([alone]), images(4))
    with pytest.raises(InputError, match="copies 0 and 1 have equal weights"):
        copies([network(0), network(0)])
    with pytest.raises(InputError, match="copies got 1 networks"):
        copies([alone])
    with pytest.raises(InputTypeError, match="needs a list"):
        copies(alone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"estimators": ["soft"]}, "estimators is 'soft'"),
        ({"strengths": [0]}, "strengths is"),
        ({"strengths": [2, 2]}, "each once"),
        ({"eps": ["5/0"]}, "eps is '5/0'"),
        ({"limit": 1}, "holds 1 image"),
        ({"bootstrap": 1}, "bootstrap is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"resubmissions": 0}, "resubmissions is 0"),
        ({"eps": []}, "eps is empty"),
        ({"estimators": []}, "estimators is empty"),
    ],
)
def test_bad_arguments(noisy: Ensemble, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        information_plane(noisy, images(4), ["noise-linf"], **change)


def test_a_single_threat_radius_or_estimator_stands_for_itself(noisy: Ensemble) -> None:
    alone = information_plane(noisy, images(4), "noise-linf", eps="8/255", estimators="soft_label")
    assert alone == information_plane(noisy, images(4), ["noise-linf"], eps=["8/255"])
