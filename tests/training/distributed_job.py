"""What each process of the training tests' job does: `python -m tests.training.distributed_job FOLDER`.

It writes what it found to FOLDER/PROCESS.pt. A process alone does the same work on the whole batch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tests.training.nets import ensemble, source, toy_data
from tests.training.settings import FULL, config
from torch import Tensor, nn

import squint
from squint import _ranks
from squint._checks import InputError
from squint.ensemble import Ensemble
from squint.training import ObjectiveConfig, fit, terms
from squint.training.launching import make_fabric
from squint.training.synchronised import synchronised

BATCH = 12


def own(x: Tensor) -> Tensor:
    """This process's part of a batch, as training deals it out."""
    return x[_ranks.rank() :: _ranks.count()]


def in_order(x: Tensor) -> Tensor:
    """The whole batch in its own order, of the parts that the processes hold."""
    return _ranks.gathered(x.detach()).transpose(0, 1).flatten(0, 1)


def normalization(kind: str, momentum: float | None) -> dict[str, Any]:
    """Two steps of one normalization layer: outputs, gradients and running statistics."""
    generator = source(3)
    shape = {"1d": (BATCH, 5), "2d": (BATCH, 5, 3, 3)}[kind]
    norm = nn.BatchNorm1d(5, momentum=momentum) if kind == "1d" else nn.BatchNorm2d(5, momentum=momentum)
    found = []
    with synchronised(norm):
        for _ in range(2):
            whole = 100 + 3 * torch.randn(shape, generator=generator)
            weights = torch.randn(shape, generator=generator)
            x = own(whole).requires_grad_()
            y = norm(x)
            norm.zero_grad()
            # The mean over processes of each one's mean.
            (y * y * own(weights)).mean().backward()
            _ranks.average_gradients(norm)
            assert x.grad is not None
            found.append((in_order(y), in_order(x.grad) / _ranks.count()))
    assert not norm.__dict__.get("forward")
    gradients = [p.grad for p in norm.parameters()]
    return {"passes": found, "gradients": gradients, "state": dict(norm.state_dict())}


def information() -> dict[str, Any]:
    """The information terms and their gradient in a weight behind the features."""
    generator = source(4)
    a, b = (torch.randn(BATCH, 6, generator=generator) for _ in range(2))
    y = torch.randint(3, (BATCH,), generator=generator)
    found = {}
    for name in ("redundancy", "conditional_redundancy"):
        weight = torch.eye(6).requires_grad_()
        features = [_ranks.joined(own(z) @ weight) for z in (a, b)]
        if name == "redundancy":
            value = terms.redundancy(features)
        else:
            value = terms.conditional_redundancy(features, _ranks.joined(own(y)))
        value.backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        found[name] = (value.detach(), _ranks.mean(weight.grad))
    return found


def trained(**settings: Any) -> dict[str, Any]:
    """A training without noise: its log and its weights."""
    # In double precision no value lies within its rounding error of a threshold. Adam is no choice: biases
    # before a normalization have gradient 0, and it would divide what rounding leaves of that by itself. The
    # rate is one at which no quantizer's step reaches its floor, where gradients have no digits.
    ens = ensemble().double()
    squint.set_rounding(ens, "nearest")
    settings |= {"optimizer": "sgd", "learning_rate": 0.001}
    entries = fit(ens, toy_data(), config(**settings), validation=toy_data(20))
    return {"terms": [entry["terms"] for entry in entries], "state": dict(ens.state_dict())}


def streams() -> dict[str, Any]:
    """What two processes draw in their first step, and the images they look at."""
    seen: dict[str, Any] = {}

    def objective(ens: Any, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        logits = ens.member_logits(x, 1)
        if step == 0:
            seen["x"], seen["noise"] = x.clone(), squint._random.random_integers((64,), x.device)
        return {"ce": nn.functional.cross_entropy(logits[0, 0], y)}

    fit(Ensemble([ensemble().members[0]]), toy_data(), config(epochs=1), objective)
    return seen


def told() -> dict[str, Any]:
    """What the processes learn from one another."""
    found: dict[str, Any] = {
        "exchange": _ranks.exchange(f"process {_ranks.rank()}"),
        "first": _ranks.first(lambda: f"process {_ranks.rank()}"),
        "any": _ranks.any_of(_ranks.rank() == 1),
        "none": _ranks.any_of(False),
        "agreed": _ranks.agreed(3, "the number"),
    }
    try:
        _ranks.agreed(_ranks.rank(), "the rank")
    except InputError as error:
        found["disagreement"] = str(error)
    try:
        _ranks.first(lambda: 1 // 0)
    except (ZeroDivisionError, _ranks.FailedElsewhere) as error:
        found["failure"] = type(error).__name__
    return found


def everything() -> dict[str, Any]:
    """What this process finds, alone or together with others."""
    return {
        "norm 1d": normalization("1d", 0.1),
        "norm 2d": normalization("2d", None),
        "information": information(),
        "plain": trained(),
        "full": trained(average=0.5, objective=FULL["objective"]),
        "curvature": trained(objective=ObjectiveConfig(smoothness=0.1, smoothness_kind="curvature")),
        "streams": streams(),
        "start": dict(ensemble().state_dict()),
    }


if __name__ == "__main__":
    make_fabric(config(devices=_ranks.started()))
    torch.save(everything() | {"told": told()}, Path(sys.argv[1]) / f"{_ranks.rank()}.pt")
