"""`fit`: learning, logging, options and the optimizer."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from tests.training.nets import ensemble, network, toy_data
from tests.training.settings import BATCH, FULL, STEPS, config, same
from torch import Tensor, nn

import squint
from squint.ensemble import Ensemble
from squint.quantize import compiled
from squint.training import ObjectiveConfig, TrainConfig, fit
from squint.training.preparation import make_optimizer, update_average

X, Y = toy_data()


def test_the_loss_falls_on_digits() -> None:
    data = squint.data.load("digits", None, validation=200, seed=0)
    with torch.random.fork_rng(devices=[]):
        # Biases keep torch's own start: what it is must not depend on the tests that ran before.
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )
    with torch.no_grad():
        for place, parameter in enumerate(net.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(
                    0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place))
                )
    ens = Ensemble([squint.quantize(net, 3, 3, 2)], draws=2)
    entries = fit(
        ens,
        data.train,
        TrainConfig(epochs=4, batch_size=64, learning_rate=0.01, accelerator="cpu"),
        validation=data.validation,
    )
    totals = [entry["terms"]["total"] for entry in entries]
    assert totals[-1] < 0.5 * totals[0]
    # Chance is 10 %.
    assert entries[-1]["validation_accuracy"] > 0.6


def test_entries_hold_every_term_by_itself() -> None:
    entries = fit(ensemble(), toy_data(), config(**FULL), validation=toy_data(20))
    assert [entry["epoch"] for entry in entries] == [1, 2]
    last = entries[-1]["terms"]
    names = {"member_ce", "ensemble_ce", "redundancy", "conditional_redundancy", "agreement", "smoothness"}
    assert last.keys() == names | {"total"}
    assert last["total"] == pytest.approx(sum(last[name] for name in names))


def test_evaluation_comes_every_so_many_epochs_and_at_the_end() -> None:
    entries = fit(ensemble(), toy_data(), config(epochs=3, evaluate_every=2), validation=toy_data(20))
    assert [entry["validation_accuracy"] is not None for entry in entries] == [False, True, True]


def test_training_depends_on_its_seed_alone_and_leaves_torchs_generator() -> None:
    first = ensemble(dropout=0.3)
    state = torch.get_rng_state()
    squint.seed(1)
    fit(first, toy_data(), config(epochs=1, **FULL), validation=toy_data(20))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    squint.seed(2)
    second = ensemble(dropout=0.3)
    fit(second, toy_data(), config(epochs=1, **FULL), validation=toy_data(20))
    assert same(first, second)
    third = ensemble(dropout=0.3)
    fit(third, toy_data(), config(epochs=1, **FULL, seed=1), validation=toy_data(20))
    assert not same(first, third)


def test_a_trained_ensemble_is_in_evaluation_mode_without_gradients() -> None:
    ens = ensemble()
    fit(ens, toy_data(), config(epochs=1))
    assert not any(module.training for module in ens.modules())
    assert all(parameter.grad is None for parameter in ens.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ens.modules())


def test_evaluation_does_not_change_training() -> None:
    with_it, without = ensemble(), ensemble()
    fit(with_it, toy_data(), config(**FULL), validation=toy_data(20))
    fit(without, toy_data(), config(**FULL))
    assert same(with_it, without)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sgd", "momentum": 0.0, "schedule": "cosine"},
        {"schedule": "constant", "clip_gradient": 0.0},
        {"channels_last": True, "average": 0.5},
        {"crop": 1, "flip": True, "cutout": 1},
        {"precision": "bf16-mixed", "objective": FULL["objective"]},
        {"precision": "16-mixed"},
        {"objective": ObjectiveConfig(label_smoothing=0.1)},
        {"epochs": 0},
    ],
    ids=str,
)
def test_every_option_runs(settings: dict[str, Any]) -> None:
    ens = ensemble()
    before = {name: value.clone() for name, value in ens.state_dict().items()}
    entries = fit(ens, toy_data(), config(**{"epochs": 1, **settings}))
    assert len(entries) == settings.get("epochs", 1)
    weights = {name: p.detach() for name, p in ens.named_parameters() if p.ndim == 4}
    assert all(torch.equal(value, before[name]) is (not entries) for name, value in weights.items())
    assert all(bool(torch.isfinite(p).all()) for p in ens.parameters())


def test_mixed_precision_leaves_the_images_exact() -> None:
    seen: list[Tensor] = []

    def watch(ens: Any, x: Tensor, y: Tensor, _step: int) -> dict[str, Tensor]:
        logits = ens.member_logits(x, 1)
        return {"ce": nn.functional.cross_entropy(logits[0, 0], y)}

    net = network(1)
    net.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    linear: list[torch.dtype] = []
    net[1].register_forward_pre_hook(lambda _module, inputs: linear.append(inputs[0].dtype))
    fit(Ensemble([net]), toy_data(), config(epochs=1, precision="bf16-mixed"), watch)
    assert all(x.dtype == torch.float32 for x in seen)
    assert torch.bfloat16 in linear


def test_a_custom_objective_is_summed_and_logged() -> None:
    seen: list[tuple[int, torch.Size]] = []

    def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        seen.append((step, x.shape))
        log_p = ens(x)
        return {"mine": nn.functional.nll_loss(log_p, y), "decay": 1e-3 * sum_of_squares(ens)}

    def sum_of_squares(ens: Any) -> Tensor:
        return torch.stack([p.square().sum() for p in ens.parameters()]).sum()

    entries = fit(ensemble(), toy_data(), config(epochs=1), objective)
    terms = entries[0]["terms"]
    assert terms.keys() == {"mine", "decay", "total"}
    assert terms["total"] == pytest.approx(terms["mine"] + terms["decay"])
    assert seen == [(step, torch.Size([BATCH, 1, 3, 3])) for step in range(STEPS)]


def test_weights_decay_and_nothing_else() -> None:
    ens = ensemble()
    decays, rest = make_optimizer(ens, config(weight_decay=0.01), torch.device("cpu")).param_groups
    assert (decays["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in ens.named_parameters()}
    ending = {names[id(p)].rsplit(".", 1)[-1] for p in decays["params"]}
    assert ending == {"weight"}
    assert all(p.ndim >= 2 for p in decays["params"])
    others = {names[id(p)].rsplit(".", 1)[-1] for p in rest["params"]}
    assert others == {"weight", "bias", "step"}
    assert len(decays["params"]) + len(rest["params"]) == len(list(ens.parameters()))
    ens.members[0].requires_grad_(False)
    groups = make_optimizer(ens, config(), torch.device("cpu")).param_groups
    kept = {id(p) for group in groups for p in group["params"]}
    assert kept == {id(p) for p in ens.members[1].parameters()}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_passes_train_alike_and_are_off_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bool] = []
    applies = compiled.applies

    def noted(*given: Any) -> bool:
        used.append(applies(*given))
        return used[-1]

    monkeypatch.setattr(compiled, "applies", noted)
    trained = []
    for compile_passes in (False, True):
        ens = ensemble()
        entries = fit(ens, toy_data(), config(epochs=1, compile=compile_passes))
        trained.append((entries[0]["terms"]["total"], torch.cat([p.flatten() for p in ens.parameters()])))
        assert any(used) == compile_passes
    used.clear()
    ens(X)
    assert used
    assert not any(used)
    # Sums in another order, for two steps.
    assert trained[1][0] == pytest.approx(trained[0][0], rel=1e-4)
    torch.testing.assert_close(trained[1][1], trained[0][1], rtol=1e-3, atol=1e-4)


def test_the_average_follows_its_recursion() -> None:
    net = nn.Linear(1, 1, bias=False)
    average = {"weight": torch.tensor([[0.0]])}
    wanted = 0.0
    for step in range(30):
        with torch.no_grad():
            net.weight.fill_(step + 1.0)
        update_average(average, net.state_dict(), 0.6, step)
        decay = min(0.6, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * (step + 1)
    assert float(average["weight"]) == pytest.approx(wanted, rel=1e-5)


def test_the_average_is_what_is_kept_and_evaluated() -> None:
    last, averaged = ensemble(), ensemble()
    fit(last, toy_data(), config(learning_rate=0.05))
    fit(averaged, toy_data(), config(learning_rate=0.05, average=0.9))
    assert not same(last, averaged)


def test_calibrated_ranges_are_kept() -> None:
    ens = ensemble()
    squint.calibrate(ens, X * 0.5)
    before = {name: v.clone() for name, v in ens.state_dict().items() if name.endswith("quantizer.step")}
    fit(ens, toy_data(), config(epochs=0))
    assert all(torch.equal(ens.state_dict()[name], value) for name, value in before.items())
