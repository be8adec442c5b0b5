"""Attacks on the shipped file itself, and the export of a run's system."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from squint import attacks
from squint import data as D
from squint._checks import InputError, check_choice, check_images, check_labels, check_number, format_fraction
from squint._files import read_json
from squint._random import default_generator
from squint.ensemble import Ensemble
from squint.export.files import load
from squint.export.onnx.runtime import OnnxModel
from squint.export.onnx.write import ExportReport, export_onnx
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


def export_run(
    run: str | Path,
    system: str | None = None,
    *,
    output: str | Path | None = None,
    rounding: str = "nearest",
    opset: int | None = None,
    data_dir: Path | None = None,
    images: int = 512,
    force: bool = False,
) -> ExportReport:
    """Export a system of a run folder, through the parity gate on its test images.

    The model card names the recipe and holds the system's headline record and whether it was trusted.

    Args:
        run: the run folder.
        system: its name; may be left out where the run has one.
        output: file to write; None: `RUN/SYSTEM-ROUNDING.onnx`.
        rounding: "nearest" or "sample".
        opset: as in `export_onnx`.
        data_dir: folder with the data set's files.
        images: test images, from the first.
        force: write although the gate fails.

    Raises:
        squint.InputError: no finished run, no such system, or what `export_onnx` refuses.
    """
    folder = Path(run)
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or not isinstance(results.get("records"), list):
        raise InputError(f"{folder / 'results.json'} holds no results")
    names = sorted(path.stem for path in (folder / "weights").glob("*.safetensors"))
    if system is None and len(names) != 1:
        raise InputError(f"system is not named; {folder} has {', '.join(names) or 'none'}")
    name = names[0] if system is None else system
    check_choice("system", name, names)
    check_number("images", images, 1, whole=True)
    test = D.load(str(results.get("dataset")), data_dir).test
    chosen = test.subset(torch.arange(min(images, len(test))))
    return export_onnx(
        load(folder / "weights" / f"{name}.safetensors"),
        folder / f"{name}-{rounding}.onnx" if output is None else output,
        rounding,
        images=chosen.float_images(),
        labels=chosen.labels,
        opset=opset,
        force=force,
        class_names=test.class_names,
        recipe={key: results.get(key) for key in ("recipe", "config_hash", "dataset", "seed")}
        | {"system": name},
        robustness=_headline(results, name),
    )


def _headline(results: dict[str, Any], system: str) -> dict[str, Any] | None:
    """Return the system's record under the run's headline attack and radius."""
    wanted = {"system": system, "attack": results.get("headline_attack"), "eps": results.get("headline_eps")}
    records: Sequence[dict[str, Any]] = results["records"]
    return next((r for r in records if all(r.get(key) == value for key, value in wanted.items())), None)
