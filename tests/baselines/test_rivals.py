"""What holds for every rival: it trains, saves, loads bit for bit, is attacked, and says what it lacks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import squint
from squint._checks import InputError
from squint.baselines import RIVALS, make_rival
from squint.ensemble import varies
from squint.training import ObjectiveConfig, fit
from tests.baselines.tiny import STEPS, setup_of, source, system, toy_data, train_config

NOISY = {"random-precision", "rse", "pni", "consistency"}
TIERS = {
    "gal": "B",
    "gradient-regularisation": "B",
    "pni": "C",
    "dverge": "C",
    "trs": "C",
    "cure": "C",
    "adversarial-training": "C",
}


@pytest.mark.parametrize("name", RIVALS)
def test_trains_saves_loads_and_is_attacked(name: str, tmp_path: Path) -> None:
    rival = make_rival(name)
    setup = setup_of(name)
    rival.check(setup)
    ens = system(rival)
    before = {key: value.clone() for key, value in ens.state_dict().items()}
    state = torch.get_rng_state()
    log = fit(ens, toy_data(), train_config(draws=setup.training_draws), rival.objective(setup))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(log) == 1
    moved = [not torch.equal(value, before[key]) for key, value in ens.named_parameters() if value.ndim > 1]
    assert any(moved)

    x, y = toy_data(6)
    squint.save(ens, tmp_path / "rival.safetensors")
    loaded = squint.load(tmp_path / "rival.safetensors")
    assert type(loaded) is type(ens)
    logits = ens.member_logits(x, 3, generator=source())
    assert logits.shape == (3, setup.members, 6, 3)
    assert torch.equal(logits, loaded.member_logits(x, 3, generator=source()))
    assert torch.equal(logits[0], logits[1]) is not (name in NOISY)
    assert all(varies(member) for member in ens.members) is (name in NOISY)

    adversarial = squint.attacks.pgd(ens, x, y, eps=0.1, steps=2, eot=2, generator=source(1))
    assert float((adversarial - x).abs().max()) <= 0.1 + 1e-6
    assert not torch.equal(adversarial, x)
    assert all(parameter.grad is None for parameter in ens.parameters())


@pytest.mark.parametrize("name", RIVALS)
def test_training_is_a_function_of_the_seed(name: str) -> None:
    weights = []
    for _ in range(2):
        rival, setup = make_rival(name), setup_of(name)
        ens = system(rival)
        fit(ens, toy_data(), train_config(draws=setup.training_draws), rival.objective(setup))
        weights.append(ens.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("name", RIVALS)
def test_options_come_back_from_plain_data(name: str) -> None:
    rival = make_rival(name)
    plain = rival.plain()
    assert plain["name"] == name
    assert make_rival(plain["name"], plain["options"]) == rival


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if rival.own_loss])
def test_trains_in_mixed_precision(name: str) -> None:
    rival, setup = make_rival(name), setup_of(name)
    config = train_config(draws=setup.training_draws, precision="bf16-mixed")
    log = fit(system(rival), toy_data(), config, rival.objective(setup))
    assert all(math.isfinite(value) for value in log[0]["terms"].values())


PASSES = {
    "pni": (1, 1, 7 + 2),  # seven steps, the clean and the adversarial loss
    "gal": (3, 2, 3 * 3 * 2),
    "trs": (2, 1, 2 * (1 + 2 + 6 + 1)),  # half a batch, twice, for each of six steps and their end
    "gradient-regularisation": (1, 1, 3),
    "cure": (3, 2, 3 * 2 * (1 + 2 + 2)),
    "dverge": (3, 1, 21),
    "adversarial-training": (2, 1, 2 * 8),
}


@pytest.mark.parametrize("name", RIVALS)
def test_tiers_and_passes(name: str) -> None:
    rival = make_rival(name)
    assert rival.tier == TIERS.get(name, "A")
    members, draws, passes = PASSES.get(name, (2, 3, 6))
    assert rival.passes_per_step(members, draws) == passes


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if rival.own_loss])
def test_a_rival_with_its_own_loss_refuses_another(name: str) -> None:
    with pytest.raises(InputError, match=f"objective sets agreement; rival {name} allowed: none"):
        make_rival(name).check(setup_of(name, objective=ObjectiveConfig(agreement=1.0)))


@pytest.mark.parametrize("name", [name for name, rival in RIVALS.items() if rival.own_layers])
def test_a_rival_with_its_own_layers_refuses_quantized_members(name: str) -> None:
    with pytest.raises(InputError, match=f"rival {name} allowed: members without it"):
        make_rival(name).check(setup_of(name, quantized=True))


@pytest.mark.parametrize("name", RIVALS)
def test_unknown_options_are_named(name: str) -> None:
    with pytest.raises(InputError, match=f"rival {name}: unknown option nonsense"):
        make_rival(name, {"nonsense": 1})


def test_unknown_rivals_are_named() -> None:
    with pytest.raises(InputError, match=r"rival is 'dorefas'; allowed: .*did you mean 'dorefa'"):
        make_rival("dorefas")


def test_bad_values_name_option_and_range() -> None:
    with pytest.raises(
        InputError, match="rival dorefa: weight_bits is 0; allowed: greater than or equal to 1"
    ):
        make_rival("dorefa", {"weight_bits": 0})


def test_steps() -> None:
    x, _ = toy_data()
    assert len(x) // train_config().batch_size == STEPS
