"""Other libraries' attacks on our models, and their examples under our rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from squint import attacks
from squint._checks import InputError, InputTypeError
from squint.attacks.adapters import as_module, external, from_torchattacks
from squint.attacks.objectives import log_mean_probability
from tests.attacks.models import Linear, NoisyLinear, interior_images

DOCS = Path(__file__).parents[2] / "docs" / "attacks.md"
EPS = 0.05


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return interior_images((6, 1, 4, 4), generator), torch.tensor([0, 1, 2, 0, 1, 2])


def numpy_state() -> str:
    return repr(np.random.get_state(legacy=False))  # noqa: NPY002


def test_a_module_is_one_deployment_per_call(generator: torch.Generator) -> None:
    model, (x, _) = NoisyLinear(2, 16, 3, 0.5), batch(generator)
    module = as_module(model, draws=8, generator=torch.Generator().manual_seed(3))
    first, second = module(x), module(x)
    units = model.member_logits(x, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, log_mean_probability(units))
    assert not torch.equal(first, second)
    assert model.units == [8, 8, 8]
    # Log mean probabilities are logits: softmax gives the mean probability back (float32, three classes).
    assert torch.allclose(first.exp().sum(-1), torch.ones(6), atol=1e-6)


def test_a_module_stays_in_evaluation_mode_and_leaves_no_trace(generator: torch.Generator) -> None:
    model, (x, y) = Linear((1, 4, 4), 3, generator).train(), batch(generator)
    module = as_module(model)
    module.train()
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(module(leaf), y).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    assert not module.training
    assert not model.trained
    assert model.training
    assert model.part.training
    assert model.weight.grad is None
    assert model.weight.requires_grad
    assert next(module.parameters()) is model.weight


def test_any_callable_is_a_module(generator: torch.Generator) -> None:
    x, _ = batch(generator)
    weight = torch.randn(3, 16, generator=generator)
    assert torch.equal(as_module(lambda image: image.flatten(1) @ weight.T)(x), x.flatten(1) @ weight.T)
    with pytest.raises(InputError, match="draws is 2 for a model without member_logits"):
        as_module(lambda image: image, draws=2)
    with pytest.raises(InputError, match="draws is 0"):
        as_module(NoisyLinear(1, 16, 3, 0.1), draws=0)
    with pytest.raises(InputTypeError, match="the model is int"):
        as_module(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda m, eps: torchattacks.PGD(m, eps=eps, alpha=eps / 4, steps=20),
        lambda m, eps: torchattacks.EOTPGD(m, eps=eps, alpha=eps / 4, steps=20, eot_iter=4),
        lambda m, eps: torchattacks.APGD(m, eps=eps, steps=10, eot_iter=2),
        lambda m, eps: torchattacks.AutoAttack(m, eps=eps, version="rand", n_classes=3, seed=0),
    ],
    ids=["PGD", "EOTPGD", "APGD", "AutoAttack rand"],
)
def test_torchattacks_reaches_the_worst_corner_of_a_noisy_linear_model(
    make: object, generator: torch.Generator
) -> None:
    assert callable(make)
    model, (x, y) = NoisyLinear(2, 16, 4, 0.02), batch(generator)
    torch_before, numpy_before = torch.get_rng_state(), numpy_state()
    attack = from_torchattacks(make, draws=2)
    runs = [attack(model, x, y, EPS, torch.Generator().manual_seed(4)) for _ in range(2)]
    found = runs[0]
    assert torch.equal(found, runs[1])
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert numpy_state() == numpy_before
    assert (found - x).abs().max() <= EPS + 1e-7
    assert model.weight.grad is None

    def wrong(points: Tensor) -> Tensor:
        units = model.member_logits(points, 64, generator=torch.Generator().manual_seed(0))
        return (log_mean_probability(units).argmax(-1) != y).float().mean()

    ours = attacks.targeted(model, x, y, eps=EPS, eot=2, generator=torch.Generator().manual_seed(0))
    # Six images: theirs may miss one that a targeted attack finds, and never finds more.
    assert wrong(x) <= wrong(found) <= wrong(ours)
    assert wrong(found) >= wrong(ours) - 0.17


def test_external_projects_rounding_and_refuses_more(generator: torch.Generator) -> None:
    x, y = batch(generator)
    model = Linear((1, 4, 4), 3, generator)
    rounded = external(lambda _m, x, _y, eps: x + eps + 1e-6)(model, x, y, EPS, generator)
    assert (rounded - x).abs().max() <= EPS + 1e-7
    with pytest.raises(InputError, match=r"left the ball of radius .* on 6 of 6 images"):
        external(lambda _m, x, _y, eps: x + 2 * eps)(model, x, y, EPS, generator)
    with pytest.raises(InputError, match="on 1 of 6 images"):
        external(lambda _m, x, _y, _eps: torch.cat([x[:1] * torch.nan, x[1:]]))(model, x, y, EPS, generator)
    with pytest.raises(InputError, match=r"returned shape \(5, 1, 4, 4\)"):
        external(lambda _m, x, _y, _eps: x[:5])(model, x, y, EPS, generator)
    with pytest.raises(InputTypeError, match="returned ndarray"):
        external(lambda _m, x, _y, _eps: x.numpy())(model, x, y, EPS, generator)  # type: ignore[arg-type, return-value]


def test_external_keeps_to_its_own_norm(generator: torch.Generator) -> None:
    x, y = batch(generator)
    # One pixel moved by 0.2: within 0.2 in L2 and far outside 0.05 in both norms.
    one = torch.zeros_like(x)
    one[:, :, 0, 0] = 0.2
    model = Linear((1, 4, 4), 3, generator)
    assert torch.allclose(
        external(lambda _m, x, _y, _eps: x + one, norm="l2")(model, x, y, 0.2, generator), x + one
    )
    with pytest.raises(InputError, match="left the ball"):
        external(lambda _m, x, _y, _eps: x + one, norm="l2")(model, x, y, EPS, generator)


def blocks_of_documentation() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_of_another_ones_model_runs() -> None:
    (chosen,) = (block for block in blocks_of_documentation() if "theirs" in block)
    scope: dict[str, Any] = {}
    exec(chosen, scope)
    x, y, found = (scope[name] for name in ("x", "y", "found"))
    assert 0 < (found - x).abs().max() <= 16 / 255 + 1e-6
    before, after = (nn.functional.cross_entropy(scope["theirs"](points), y) for points in (x, found))
    assert after > before
    assert scope["report"].records[0].n == len(x)


def test_the_example_of_the_documentation_runs() -> None:
    blocks = blocks_of_documentation()
    chosen = [block for block in blocks if "torchattacks" in block]
    assert len(chosen) == 1
    scope: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(chosen[0], scope)
    scores = scope["scores"]
    assert 0 <= scores.accuracy <= 1  # type: ignore[attr-defined]
    for block in blocks:
        compile(block, str(DOCS), "exec")
