"""Red flags of the model itself: the mode it came in, outputs that are no logits or no one image's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from squint._checks import HasMemberLogits, InputError, check_logits
from squint._random import derive_generator, derive_seed, noise
from squint.attacks.gradients import AnyModel, Units
from squint.evaluation.records import Finding
from squint.evaluation.scoring import Scores
from squint.quantize.modes import quantizers
from squint.quantize.quantizer import WIDTH_FLOOR

_TOLERANCE = 1e-4
"""Share of an output's size that float rounding may account for."""
_NAMED = 5
"""Images that a finding about some of them names."""
_AT_FLOOR = 1.01
"""A learnable width within 1 % of its floor has been driven there."""


def training_mode(model: object) -> Finding | None:
    """Return a finding if the model, or any part of it, was handed over in training mode."""
    parts = (
        [name or "the model itself" for name, part in model.named_modules() if part.training]
        if isinstance(model, nn.Module)
        else []
    )
    if not parts:
        return None
    return Finding(
        "training_mode",
        f"the model was handed over in training mode ({len(parts)} parts, first {parts[0]}); it was "
        "evaluated in evaluation mode",
        {"parts": len(parts), "first": parts[0]},
    )


@torch.no_grad()
def probability_outputs(model: AnyModel, x: Tensor, *, seed: int) -> Finding | None:
    """Return a finding if outputs, or member outputs, are probabilities: each row non-negative, sum 1.

    A softmax over probabilities lies between 1/(1 + (K−1)e) and e/(e + K−1): losses saturate and gradients
    shrink. Logits of a trained network are neither.

    Args:
        model: in evaluation mode.
        x: images (batch, ...).
        seed: of the noise.
    """
    generator = derive_generator(seed, "probability outputs")
    if isinstance(model, HasMemberLogits):
        rows, what = model.member_logits(x, 1, generator=generator).flatten(0, -2).double(), "member_logits"
    else:
        with noise(generator):
            logits = model(x)
        check_logits(logits, len(x))
        rows, what = logits.double(), "outputs"
    off = float((rows.sum(-1) - 1).abs().max())
    if bool((rows < 0).any()) or not off <= 1e-3:
        return None
    return Finding(
        "probabilities",
        f"{what} are probabilities, not logits: all {len(rows)} rows are non-negative and sum to 1",
        {"rows": len(rows), "largest_deviation": off},
    )


@torch.no_grad()
def batch_dependence(model: AnyModel, x: Tensor, y: Tensor, *, seed: int) -> Finding | None:
    """Return a finding if the outputs of the first half of a batch depend on its second half.

    The second half is replaced by its negative, 1 − x, under the same noise and in the same place. Noise that
    squint cannot hold still shows as a difference between two identical passes, and only a difference beyond
    twice that counts. A static hash or a count of queries is not looked for.

    Args:
        model: in evaluation mode.
        x: images (batch, ...), 2 or more.
        y: labels (batch,).
        seed: of the noise.

    Raises:
        squint.InputError: fewer than 2 images.
    """
    if len(x) < 2:
        raise InputError(f"batch_dependence got {len(x)} images; allowed: 2 or more")
    half = len(x) // 2
    units, stream = Units(model, y, 4), derive_seed(seed, "batch dependence")
    other = torch.cat([x[:half], 1 - x[half:]])
    outputs = [units.logits(batch, stream)[:, :, :half].double() for batch in (x, x, other)]
    # Images without finite outputs are another finding's.
    finite = torch.stack(outputs).isfinite().all(-1).flatten(0, -2).all(0)
    if not bool(finite.any()):
        return None
    first, again, changed = (each[:, :, finite] for each in outputs)
    repeat, change = float((first - again).abs().mean()), float((first - changed).abs().mean())
    size = float(first.abs().mean())
    if change <= 2 * repeat + _TOLERANCE * size:
        return None
    return Finding(
        "batch_dependence",
        f"outputs depend on the rest of the batch: they move by {change:.3g} on average (their size is "
        f"{size:.3g}) when other images change",
        {"mean_change": change, "mean_repeat": repeat, "mean_size": size},
    )


def nan_outputs(scores: Mapping[str, Scores]) -> list[Finding]:
    """Return a finding if a deployment's output held a NaN, which was counted as an error.

    Args:
        scores: outcomes of the same images (n,), by what they are called ("clean images").
    """
    found = {
        name: torch.nonzero(each.nan).flatten().tolist()
        for name, each in scores.items()
        if each.nan is not None
    }
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return []
    told = "; ".join(
        f"{len(rows)} of {len(scores[name].errors)} {name} (the first are images "
        f"{', '.join(map(str, rows[:_NAMED]))})"
        for name, rows in found.items()
    )
    measured = {name: {"images": len(rows), "first": rows[:_NAMED]} for name, rows in found.items()}
    return [Finding("nan_outputs", f"outputs are NaN, counted as errors, on {told}", measured)]


def dead_widths(model: object) -> list[Finding]:
    """Return a finding for each quantizer whose learnable noise width has fallen to its floor."""
    findings = []
    for quantizer in quantizers(model) if isinstance(model, nn.Module) else ():
        width = float(quantizer.width.detach())
        if isinstance(quantizer.width, nn.Parameter) and width <= WIDTH_FLOOR * _AT_FLOOR:
            findings.append(
                Finding(
                    "dead_width",
                    f"the noise width of {quantizer.name} has died: {width:.3g} at a floor of {WIDTH_FLOOR}",
                    {"quantizer": quantizer.name, "width": width, "floor": WIDTH_FLOOR},
                )
            )
    return findings
