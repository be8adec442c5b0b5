"""`evaluate` on models whose accuracy under attack is known, and what its records say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import squint
from squint import InputError, InputTypeError
from squint.evaluation import AttackSetting, RobustnessReport, evaluate

CONTRACT = {
    "system": str, "attack": str, "preset": str, "norm": str, "eps": str, "steps": int, "eot": int,
    "restarts": int, "n": int, "draws": int, "seed": int, "clean_accuracy": float, "robust_accuracy": float,
    "ci95": list, "single_draw_accuracy": float, "persistent_accuracy": float, "seconds": float,
    "red_flags": list, "trusted": bool,
}  # fmt: skip


def linear_case(n: int = 60) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return a two-class linear model, images inside [0.3, 0.7], labels, and each image's margin in eps."""
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(9, 2, bias=False)
    model = nn.Sequential(nn.Flatten(), linear).eval()
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, 9, generator=generator))
    x = 0.3 + 0.4 * torch.rand(n, 1, 3, 3, generator=generator)
    y = (torch.rand(n, generator=generator) < 0.5).long()
    weight = linear.weight.detach()
    logits = x.flatten(1) @ weight.T
    gap = logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]
    distance = gap / (weight[0] - weight[1]).abs().sum()
    return model, x, y, distance


def noisy_ensemble() -> squint.Ensemble:
    """Return two untrained members behind stochastic 1-bit and 2-bit inputs, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    members = []
    for bits in (1, 2):
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        members.append(squint.quantize(network, 4, 4, bits))
    ens = squint.Ensemble(members, draws=2)
    with squint.noise(generator):
        squint.calibrate(ens, torch.rand(64, 1, 4, 4, generator=generator))
    return ens.eval()


def noisy_data(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n, 1, 4, 4, generator=generator), torch.arange(n) % 3


def figures(report: RobustnessReport) -> list[dict[str, Any]]:
    """Return all that records say but the time they took."""
    return [{**record.to_json(), "seconds": 0} for record in report.records]


@pytest.mark.parametrize("attack", ["fgsm", "seed", "pgd-eot10"])
def test_curve_of_a_linear_model_is_exact(attack: str) -> None:
    """Every attack finds the worst point of a linear model: accuracy at eps is the share of margins above."""
    model, x, y, distance = linear_case()
    radii = [0.0, 0.02, 0.06, 0.15]
    # PGD ends within a step of the corner only where signs never turn: at the corner itself.
    assert not any(((distance - eps).abs() < 1e-4).any() for eps in radii)
    report = evaluate(model, (x, y), radii, [attack], batch_size=25)
    assert [record.robust_accuracy for record in report.records] == [
        pytest.approx(float((distance > eps).double().mean()), abs=1e-9) for eps in radii
    ]
    assert report.records[0].robust_accuracy == report.records[0].clean_accuracy
    assert [record.eps for record in report.records] == ["0/255", "0.02", "0.06", "0.15"]
    for record, eps in zip(report.records, radii, strict=True):
        points = report.outcome(eps, record.attack).adversarial
        assert points.shape == x.shape
        assert float((points - x).abs().max()) <= eps + 1e-6


def test_records_hold_the_contract() -> None:
    report = evaluate(noisy_ensemble(), noisy_data(), ["5/255", 16 / 255], "seed", system="pair", seed=7)
    for record in report.records:
        plain = json.loads(json.dumps(record.to_json(), allow_nan=False))
        for name, kind in CONTRACT.items():
            assert type(plain[name]) is kind, name
        low, high = plain["ci95"]
        assert 0 <= low <= plain["robust_accuracy"] <= high <= 1
        assert (plain["system"], plain["attack"], plain["preset"], plain["norm"]) == (
            "pair",
            "pgd",
            "seed",
            "linf",
        )
        assert (plain["steps"], plain["eot"], plain["restarts"], plain["seed"]) == (20, 1, 1, 7)
        assert (plain["n"], plain["draws"]) == (12, 2)
        assert set(plain["persistent"]) == set(plain["clean_persistent"]) == {"1", "10", "100"}
        assert plain["persistent"]["1"] == pytest.approx(plain["robust_accuracy"])
        assert plain["persistent"]["100"] is None
        assert plain["details"]["resubmissions"] == 64
        assert not plain["trusted"]
        assert [flag["kind"] for flag in plain["red_flags"]] == ["no_active_tests"]
    assert [record.eps for record in report.records] == ["5/255", "16/255"]
    assert "UNTRUSTED" in str(report)


def test_equal_seeds_give_equal_reports() -> None:
    def run(seed: int) -> RobustnessReport:
        return evaluate(noisy_ensemble(), noisy_data(), "16/255", ["fgsm", "pgd"], seed=seed, resubmissions=8)

    a, b, c = run(0), run(0), run(1)
    assert figures(a) == figures(b)
    for left, right in zip(a.outcomes, b.outcomes, strict=True):
        assert torch.equal(left.adversarial, right.adversarial)
        assert torch.equal(left.correct, right.correct)
    assert not torch.equal(a.outcomes[1].adversarial, c.outcomes[1].adversarial)


def test_a_record_does_not_depend_on_the_others() -> None:
    """Streams are keyed by attack and eps: the same figure alone, in a curve, or beside another attack."""
    alone = evaluate(noisy_ensemble(), noisy_data(), "16/255", "pgd", resubmissions=8)
    curve = evaluate(noisy_ensemble(), noisy_data(), ["8/255", "16/255"], ["fgsm", "pgd"], resubmissions=8)
    assert alone.record("16/255").robust_accuracy == curve.record("16/255", "pgd").robust_accuracy
    assert torch.equal(alone.outcome("16/255", "pgd").correct, curve.outcome("16/255", "pgd").correct)


class Watched(nn.Module):
    """Notes the seed of every generator it is given, apart for passes with and without a gradient."""

    draws = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.seeds: dict[bool, set[int]] = {True: set(), False: set()}

    def member_logits(
        self,
        x: Tensor,
        draws: int = 1,
        *,
        generator: torch.Generator | None = None,
        stratified: bool = False,
    ) -> Tensor:
        del stratified
        assert generator is not None
        self.seeds[torch.is_grad_enabled()].add(generator.initial_seed())
        torch.rand(1, generator=generator)
        return (x.mean((1, 2, 3))[:, None] * self.weight).expand(draws, 1, -1, -1)


def test_attack_and_score_streams_are_disjoint() -> None:
    model = Watched()
    evaluate(model, noisy_data(), ["5/255", "8/255"], ["fgsm", "pgd"], batch_size=5, resubmissions=4)
    assert len(model.seeds[True]) > 100  # every gradient step has noise of its own
    assert len(model.seeds[False]) == 3 * (1 + 4)  # three batches, clean and four settings
    assert not model.seeds[True] & model.seeds[False]


def test_evaluation_leaves_no_trace() -> None:
    ens = noisy_ensemble()
    ens.train()
    ens.members[0].eval()
    modes = [module.training for module in ens.modules()]
    state = {name: value.clone() for name, value in ens.state_dict().items()}
    gradient = torch.ones(1)
    first = next(ens.parameters())
    first.grad = gradient.expand_as(first).clone()
    torch_state = torch.get_rng_state()
    squint_state = squint._random.default_generator().get_state()
    report = evaluate(ens, noisy_data(), "8/255", ["fgsm", "pgd"], resubmissions=4)
    assert [module.training for module in ens.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in ens.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in list(ens.parameters())[1:])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(squint._random.default_generator().get_state(), squint_state)
    assert all("training_mode" in [flag.kind for flag in record.red_flags] for record in report.records)


def off_grey(x: Tensor) -> Tensor:
    """Errs on grey images alone: an attack from a random start cannot but leave them."""
    away = (x - 0.5).abs().flatten(1).mean(1)
    return torch.stack([100 * away - 1, torch.zeros_like(away)], 1)


def test_accuracy_that_rises_with_eps_is_flagged() -> None:
    x, y = torch.full((30, 1, 4, 4), 0.5), torch.zeros(30, dtype=torch.int64)
    report = evaluate(off_grey, (x, y), [0.0, 0.4], "pgd", resubmissions=2)
    assert report.record(0.0).robust_accuracy == 0.0
    assert report.record(0.4).robust_accuracy == 1.0
    assert [flag.kind for flag in report.record(0.0).red_flags] == ["no_active_tests"]
    assert "rises_with_eps" in [flag.kind for flag in report.record(0.4).red_flags]


def test_custom_budget_is_not_called_the_seed_protocol() -> None:
    setting = AttackSetting("long", steps=3, restarts=2, eot=2, norm="l2")
    report = evaluate(noisy_ensemble(), noisy_data(4), 1.5, [setting], resubmissions=4)
    record = report.records[0]
    assert (record.attack, record.preset, record.norm, record.steps, record.restarts, record.eot) == (
        "long", "custom", "l2", 3, 2, 2,
    )  # fmt: skip
    length = (report.outcomes[0].adversarial - noisy_data(4)[0]).flatten(1).norm(dim=1)
    assert float(length.max()) <= 1.5 + 1e-5
    with pytest.raises(InputError, match="fgsm has steps 20"):
        AttackSetting("fgsm")


def test_progress_and_limit() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        noisy_ensemble(), noisy_data(), ["1/255", "2/255"], "fgsm", limit=7, batch_size=5, resubmissions=4,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(5, 14), (7, 14), (12, 14), (14, 14)]


def test_lookup() -> None:
    report = evaluate(noisy_ensemble(), noisy_data(4), ["0.0123456789", "10/510"], "fgsm", resubmissions=4)
    assert report.record(0.0123456789) is report.records[0]
    assert report.record("5/255", "fgsm") is report.records[1]
    assert report.outcome("5/255", "fgsm") is report.outcomes[1]
    with pytest.raises(
        InputError, match=r"no record of pgd at eps 5/255; there are fgsm at 0.0123457, fgsm at"
    ):
        report.record("5/255", "pgd")
    with pytest.raises(InputError, match="no outcome of fgsm at eps 9/255"):
        report.outcome("9/255", "fgsm")


def test_interval_and_fractional_accuracy() -> None:
    """A model that errs half of the time has accuracy one half, not a vote."""

    def coin(x: Tensor) -> Tensor:
        u = squint._random.random_integers((len(x),), x.device).float()[:, None]
        return torch.cat([u, -u], 1) + 0 * x.sum()

    n, resubmissions = 50, 64
    x, y = torch.full((n, 1, 2, 2), 0.5), torch.zeros(n, dtype=torch.int64)
    record = evaluate(coin, (x, y), "8/255", "fgsm", resubmissions=resubmissions).records[0]
    assert abs(record.robust_accuracy - 0.5) < 5 * math.sqrt(0.25 / (n * resubmissions))
    assert record.persistent_accuracy is not None
    assert record.persistent_accuracy < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": "5/0"}, "eps is '5/0'; allowed: a fraction"),
        ({"eps": "-1/255"}, r"eps is -0.0039\d*; allowed: a number in \[0, 1\]"),
        ({"eps": 1.5}, r"eps is 1.5; allowed: a number in \[0, 1\]"),
        ({"eps": []}, "eps is empty"),
        ({"attacks": "pdg"}, r"attacks is 'pdg'; allowed: .*did you mean 'pgd'"),
        ({"attacks": "strong"}, "attacks is 'strong'; allowed: .*, quick, standard, exhaustive"),
        ({"attacks": []}, "attacks is empty"),
        ({"attacks": ["seed", "pgd"]}, "attacks names 'pgd' more than once"),
        ({"draws": 0}, "draws is 0"),
        ({"resubmissions": 0}, "resubmissions is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"tier": "D"}, "tier is 'D'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"eps": "5/255", "attacks": "seed", **changes}
    with pytest.raises(InputError, match=message):
        evaluate(noisy_ensemble(), noisy_data(), **arguments)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (1.001, 0, r"values in \[.*1.001\]; allowed: \[0, 1\]"),
        (float("nan"), 0, "contains NaN or infinity"),
        (0.5, 3, r"labels has values in \[0, 3\]; allowed: 0..2"),
        (0.5, -1, r"labels has values in \[-1, 2\]"),
    ],
)
def test_bad_data(image: float, label: int, message: str) -> None:
    x, y = noisy_data()
    x[3, 0, 0, 0], y[5] = image, label
    with pytest.raises(InputError, match=message):
        evaluate(noisy_ensemble(), (x, y), "5/255")


def test_wrong_kinds() -> None:
    with pytest.raises(InputTypeError, match="data must be a pair"):
        evaluate(noisy_ensemble(), "digits")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="draws is 4; allowed: 1 for a model without member_logits"):
        evaluate(off_grey, noisy_data(), "5/255", draws=4)
    with pytest.raises(InputTypeError, match="attacks holds int"):
        evaluate(noisy_ensemble(), noisy_data(), "5/255", [3])  # type: ignore[list-item]
