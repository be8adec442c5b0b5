"""Red flags of a model that is not the same twice: in its outputs, in its gradient, or under its own call."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, check_logits
from squint._random import derive_generator, derive_seed, noise
from squint.attacks.gradients import AnyModel, Units
from squint.attacks.objectives import mean_cross_entropy
from squint.ensemble import Ensemble
from squint.evaluation.records import Finding
from squint.evaluation.scoring import deployed_draws, is_random, pooled

TOLERANCE = 1e-3
"""Share of an output's or a gradient's size that kernels may differ by which round otherwise each time."""
CALLS = 32
_APART = 6
"""Standard errors by which mean probabilities of one rule may differ in the mean over images and classes."""
_LEAST = 0.01
"""Mean difference of probabilities below which two rules count as one."""


def hidden_noise(model: AnyModel, x: Tensor, y: Tensor, *, seed: int) -> Finding | None:
    """Return a finding if a model that counts as still gives other outputs, or gradients, the second time.

    It is attacked with one draw, and scored once: noise of a hook, or in the backward pass alone, would look
    like robustness. Models that may draw noise are attacked and scored as such, and are not looked at here.

    Args:
        model: in evaluation mode.
        x: images (batch, ...).
        y: labels (batch,).
        seed: of the noise.
    """
    if is_random(model):
        return None
    units = Units(model, y, 1)
    seeds = [derive_seed(seed, "hidden noise", k) for k in range(2)]

    def loss(logits: Tensor) -> Tensor:
        return mean_cross_entropy(logits, y)

    for what, (first, again) in (
        ("outputs", [units.logits(x, each).double() for each in seeds]),
        ("gradients", [units.gradients(x, loss, each)[1] for each in seeds]),
    ):
        if moved := _moved(first, again):
            return Finding(
                "hidden_noise",
                f"the model counts as one without noise, but its {what} differ between two calls by "
                f"{moved['mean_change']:.3g} on average (their size is {moved['mean_size']:.3g})",
                moved,
            )
    return None


def _moved(first: Tensor, other: Tensor) -> dict[str, float]:
    """Return mean change and size of what is finite in both; nothing where kernels' rounding explains it."""
    known = first.isfinite() & other.isfinite()
    size, change = float(first[known].abs().mean()), float((first - other)[known].abs().mean())
    return {"mean_change": change, "mean_size": size} if change > TOLERANCE * size else {}


@torch.no_grad()
def company(model: AnyModel, x: Tensor, y: Tensor, *, seed: int) -> Finding | None:
    """Return a finding if a still model's outputs change where an image is alone, or the batch turned round.

    `batch_dependence` replaces half of the batch, which is all that can be compared under noise.

    Args:
        model: in evaluation mode.
        x: images (batch, ...), 2 or more.
        y: labels (batch,).
        seed: of the noise.
    """
    if is_random(model):
        return None
    stream = derive_seed(seed, "company")
    together = Units(model, y, 1).logits(x, stream).double()
    turned = Units(model, y.flip(0), 1).logits(x.flip(0), stream).double().flip(2)
    alone = [
        Units(model, y[i : i + 1], 1).logits(x[i : i + 1], stream).double() for i in range(min(8, len(x)))
    ]
    for what, ours, theirs in (
        ("alone", together[:, :, : len(alone)], torch.cat(alone, 2)),
        ("in another order", together, turned),
    ):
        if moved := _moved(ours, theirs):
            return Finding(
                "batch_dependence",
                f"outputs depend on the rest of the batch: {what} they move by {moved['mean_change']:.3g} on "
                f"average (their size is {moved['mean_size']:.3g})",
                moved,
            )
    return None


@torch.no_grad()
def other_forward(model: AnyModel, x: Tensor, *, seed: int) -> Finding | None:
    """Return a finding if calling a model gives other probabilities than its pooled `member_logits`.

    The latter are what is attacked and scored; the call is what anybody would deploy. squint's own ensembles
    compute one from the other. Mean probabilities over `CALLS` calls are compared, against their errors.

    Args:
        model: in evaluation mode.
        x: images (batch, ...).
        seed: of the noise.
    """
    if not isinstance(model, nn.Module) or isinstance(model, Ensemble) or hasattr(model, "pool_members"):
        return None
    if not isinstance(model, HasMemberLogits):
        return None
    calls, draws = CALLS if is_random(model) else 2, deployed_draws(model)
    generator = derive_generator(seed, "other forward")
    called, scored = [], []
    for _ in range(calls):
        with noise(generator):
            logits = model(x)
        check_logits(logits, len(x))
        called.append(logits.double().softmax(-1))
        members = model.member_logits(x, draws, generator=generator).double().softmax(-1)
        scored.append(pooled(model, members).mean(0))
    ours, theirs = torch.stack(called), torch.stack(scored)
    apart = float((ours.mean(0) - theirs.mean(0)).abs().nanmean())
    error = float(((ours.var(0) + theirs.var(0)) / calls).sqrt().nanmean())
    if math.isnan(apart) or apart <= max(_LEAST, _APART * error):
        return None
    return Finding(
        "other_forward",
        f"calling the model gives probabilities that are {apart:.3g} on average from those of its pooled "
        "member_logits, which are what was attacked and scored",
        {"mean_difference": apart, "standard_error": error},
    )
