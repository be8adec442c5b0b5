"""Attacks on the shipped file itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from squint import attacks
from squint._checks import check_images, check_labels, check_number, format_fraction
from squint._random import default_generator
from squint.ensemble import Ensemble
from squint.export.onnx.runtime import OnnxModel
from squint.quantize import set_rounding


@dataclass(frozen=True)
class ShippedRobustness:
    """What the runtime's own predictions withstand; accuracies are fractions of `n` images.

    Attributes:
        eps: L-infinity radius, as people write it.
        n: images.
        resubmissions: predictions of each image that the accuracies are means of; 1 where nothing is drawn.
        clean_accuracy: without attack.
        transfer_accuracy: under adversarial points of the differentiable twin.
        square_accuracy: under Square on the runtime, begun from the twin's points.
        worst_accuracy: under whichever of the two errs more on each image.
    """

    eps: str
    n: int
    resubmissions: int
    clean_accuracy: float
    transfer_accuracy: float
    square_accuracy: float
    worst_accuracy: float


def attack_shipped(
    model: OnnxModel,
    twin: Ensemble,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int = 50,
    queries: int = 1000,
    eot: int = 10,
    resubmissions: int = 16,
    generator: torch.Generator | None = None,
) -> ShippedRobustness:
    """Return the accuracy of an exported model under attack, measured on the runtime.

    The graph has no gradient: it is attacked by transfer from the ensemble it was exported from, and from
    there by Square, which asks the runtime alone.

    Args:
        model: the exported model.
        twin: the ensemble it was exported from; it is not changed.
        x: images (n, channels, height, width) in [0, 1].
        y: labels (n,).
        eps: L-infinity radius.
        steps: of the transfer attack.
        queries: candidates of Square.
        eot: draws per gradient and per candidate of a stochastic model.
        resubmissions: predictions of each image that are scored for a stochastic model.
        generator: source of the attacks' randomness; the runtime's own noise is always fresh.

    Raises:
        squint.InputError: images, labels or a budget out of range, or classes that do not fit.
    """
    check_images(x)
    check_number("resubmissions", resubmissions, 1, whole=True)
    check_labels(y, len(x), model.num_classes)
    generator = generator or default_generator()
    twin = copy.deepcopy(twin).eval()
    set_rounding(twin, str(model.card["rounding"]))
    noisy = model.card["rounding"] == "sample"
    eot, runs = (eot, resubmissions) if noisy else (1, 1)
    moved = attacks.transfer([twin], x, y, eps=eps, steps=steps, eot=eot, generator=generator)
    searched = attacks.square(model, x, y, eps=eps, steps=queries, eot=eot, generator=generator, start=moved)
    clean, transfer, square = (_correct(model, points, y, runs) for points in (x, moved, searched))
    return ShippedRobustness(
        eps=format_fraction(eps),
        n=len(x),
        resubmissions=runs,
        clean_accuracy=float(clean.mean()),
        transfer_accuracy=float(transfer.mean()),
        square_accuracy=float(square.mean()),
        worst_accuracy=float(torch.minimum(transfer, square).mean()),
    )


def _correct(model: OnnxModel, x: Tensor, y: Tensor, runs: int) -> Tensor:
    """Return each image's share of correct predictions (n,)."""
    hits = [
        torch.cat([model(part).argmax(1) for part in torch.split(x, 128)]).eq(y).double() for _ in range(runs)
    ]
    return torch.stack(hits).mean(0)
