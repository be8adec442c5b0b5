"""`squint export`: one ONNX file for a system, checked against it before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from squint._checks import InputError, check_choice, check_number
from squint.commands.targets import Target, data_for, load_target
from squint.export.onnx import ExportReport, export_onnx, export_run
from squint.study.attack import targets
from squint.study.config import RecipeConfig


@dataclass(frozen=True)
class ExportOptions:
    """Export a system as one ONNX file, whose model card names its recipe and its robustness.

    Examples:
      squint export runs/digits --system stochastic
      squint export runs/digits/weights/stochastic.safetensors --rounding sample --output model.onnx
      squint export mine.safetensors --dataset folder:images --opset 21
    """

    path: tyro.conf.Positional[Path]
    """Run folder, or weights (*.safetensors)."""
    system: str | None = None
    """Name of the system, where the run has several."""
    rounding: Literal["nearest", "sample"] = "nearest"
    """nearest: one deterministic pass; sample: the system's draws of fresh noise."""
    opset: int | None = None
    """Version of ONNX's operator set; default: the oldest that holds the weights' bits."""
    output: Path | None = None
    """File to write; default: SYSTEM-ROUNDING.onnx in the run folder, or beside the weights."""
    dataset: str | None = None
    """Data set whose test images check the graph, for weights outside of a run; default: no check."""
    data_dir: str | None = None
    """Folder with the data set's files; default: the run's, or the cache."""
    images: int = 512
    """Test images for the check, from the first."""
    force: bool = False
    """Write the file although it fails the check."""


def export_path(options: ExportOptions) -> ExportReport:
    """Return what was exported.

    Raises:
        squint.InputError: the extra `onnx` is missing, no such system, or what `export_onnx` refuses.
    """
    check_number("images", options.images, 1, whole=True)
    recipe, files = targets(options.path)
    if options.system is not None:
        check_choice("system", options.system, [file.stem for file in files])
    run = options.path if options.path.is_dir() else options.path.parent.parent
    try:
        if recipe is None or not (run / "results.json").is_file():
            return _export_weights(load_target(options.path, options.system), options)
        return _export_system(run, recipe, options)
    except InputError as error:
        # The gate names the arguments of the Python function.
        reason, refused, _ = str(error).partition(" (integer_sums=False")
        raise InputError(f"{reason}; --force writes it all the same" if refused else reason) from None


def _export_system(run: Path, recipe: RecipeConfig, options: ExportOptions) -> ExportReport:
    """Export a system of a finished run, with its record."""
    if options.dataset not in (None, recipe.dataset):
        raise InputError(f"dataset is {options.dataset!r}; allowed for {run}: its own, {recipe.dataset}")
    data_dir = options.data_dir or recipe.data_dir
    return export_run(
        run,
        options.system if options.path.is_dir() else options.path.stem,
        output=options.output,
        rounding=options.rounding,
        opset=options.opset,
        data_dir=None if data_dir is None else Path(data_dir),
        images=options.images,
        force=options.force,
    )


def _export_weights(target: Target, options: ExportOptions) -> ExportReport:
    """Export weights whose run has no results, or that lie in no run."""
    test = None
    if target.recipe is not None or options.dataset is not None:
        splits = data_for(target, options.dataset, options.data_dir)
        test = splits.test.subset(torch.arange(min(options.images, len(splits.test))))
    return export_onnx(
        target.ens,
        options.output or target.file.with_name(f"{target.name}-{options.rounding}.onnx"),
        options.rounding,
        images=None if test is None else test.float_images(),
        labels=None if test is None else test.labels,
        opset=options.opset,
        force=options.force,
        class_names=None if test is None else test.class_names,
    )


def export_lines(report: ExportReport) -> list[str]:
    """Return what was exported, for people."""
    lines = [
        f"model: {report.path} ({report.bytes:,} bytes, opset {report.opset}; "
        f"{len(report.integer)} layers in integers, {len(report.floating)} in floats)"
    ]
    if report.narrowed:
        lines.append(f"weights of 8 bits rounded to 7, for this kind of CPU: {', '.join(report.narrowed)}")
    if report.parity is None:
        return [*lines, "not checked against the ensemble: name its data set with --dataset"]
    parity = report.parity
    own = "" if parity.accuracy is None else f"; the ensemble's accuracy {parity.accuracy:.1%}"
    lines.append(f"checked against the ensemble on {parity.n} images, rounding {parity.rounding}{own}")
    for session in parity.comparisons:
        parts = [] if session.accuracy is None else [f"accuracy {session.accuracy:.1%}"]
        if session.disagreement is not None:
            parts.append(f"{session.disagreement:.1%} of predictions differ")
        if session.mean_deviation is not None:
            parts.append(f"mean over draws {session.mean_deviation:.2f} standard errors off")
        lines.append(f"  graph optimizations {'on' if session.optimized else 'off'}: {', '.join(parts)}")
    return lines
