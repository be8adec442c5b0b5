"""The information terms of the objective: their cost against n, members and features, and share of a step.

Run by `make bench`, or alone with `python -m benchmarks.information`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.timing import medians, show
from squint import Ensemble, ObjectiveConfig, calibrate, models, quantize
from squint.training import EnsembleObjective, terms

ROWS, MEMBERS, FEATURES = 512, 4, 512
"""The case that has a goal; each of the three is varied with the other two held."""

VARIED = {"n": (128, 256, 512, 1024), "members": (2, 4, 8), "features": (64, 512, 2048)}


def objective_terms(n: int, members: int, features: int) -> Callable[[], None]:
    """Return a task: both terms of all pairs, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    zs = [torch.randn(n, features, generator=generator).requires_grad_() for _ in range(members)]
    y = torch.randint(10, (n,), generator=generator)

    def task() -> None:
        torch.autograd.grad(terms.redundancy(zs) + terms.conditional_redundancy(zs, y), zs)

    return task


def training_step(batch: int, members: int) -> Callable[[], None]:
    """Return a task: one step of a CIFAR ResNet-20 ensemble without information terms, one draw."""
    nets: list[nn.Module] = [
        quantize(models.resnet20(), bits, 4, 2, activation_width=0.0) for bits in range(2, 2 + members)
    ]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, 32, 32, generator=generator)
    y = torch.randint(10, (batch,), generator=generator)
    for net in nets:
        calibrate(net, x[:64])
    ens = Ensemble(nets).train()
    objective = EnsembleObjective(ObjectiveConfig(), 1, 1)
    optimizer = torch.optim.SGD(ens.parameters(), lr=1e-4, momentum=0.9)

    def task() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(objective(ens, x, y, 1).values())).sum())
        optimizer.step()

    return task


def main() -> None:
    """Print both tables."""
    base = {"n": ROWS, "members": MEMBERS, "features": FEATURES}
    threads = torch.get_num_threads()
    print(
        f"\nredundancy and conditional redundancy of all pairs, forward and backward, ms, {threads} threads; "
        f"the others held at n = {ROWS}, {MEMBERS} members, {FEATURES} features"
    )
    for name, values in VARIED.items():
        times = medians({str(v): objective_terms(**base | {name: v}) for v in values}, repeats=9)
        print(f"  {name:<10}" + "".join(f"{v:>9} {times[str(v)]:9.2f}" for v in values))
    ms = medians(
        {"terms": objective_terms(**base), "step": training_step(ROWS, MEMBERS)}, repeats=3, warmup=1
    )
    show(
        f"information terms against a training step, ResNet-20 x {MEMBERS} members, batch {ROWS}",
        "ratio at most 0.05",
        [(f"all pairs, n {ROWS}, {FEATURES} features", ms["terms"], "one step without them", ms["step"])],
    )


if __name__ == "__main__":
    main()
