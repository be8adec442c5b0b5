"""`squint export`: one ONNX file for a system, checked against it before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from squint._checks import InputError, check_number
from squint._files import check_output
from squint.commands.targets import Target, data_for, load_target
from squint.data import ImageData
from squint.evaluation.detection.calibration import minimum_examples
from squint.export.onnx import ExportReport, Prepared, export_onnx, prepare
from squint.export.parity import Comparison, ParityError, limits
from squint.study.config import config_hash
from squint.study.folder import read_results
from squint.study.keeping import check_weights, held
from squint.zoo import home, is_shipped

RANGE_IMAGES = 512
"""Training images that set the ranges of 8-bit outputs, from the first."""
DETECTOR_IMAGES = 2000
"""Most validation images that calibrate the detector, from the first."""


@dataclass(frozen=True)
class ExportOptions:
    """Export a system as one ONNX file, whose model card names its recipe and its robustness.

    Examples:
      squint export runs/digits --system stochastic
      squint export cifar10 --data-dir DIR --max-disagreement 0.04
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
    cpu: Literal["this", "any"] = "this"
    """Where it runs. any: 8-bit weights are rounded to 7 bits wherever a CPU without VNNI would clip sums."""
    integer_sums: bool = True
    """Add residual branches in 8-bit integers; --no-integer-sums is slower, mostly closer to the ensemble."""
    output: Path | None = None
    """File to write; default: SYSTEM-ROUNDING.onnx in the run folder (runs/shipped/NAME for a shipped
    model), or beside the weights."""
    dataset: str | None = None
    """Data set whose test images check the graph, for weights outside of a run; default: no check."""
    data_dir: str | None = None
    """Folder with the data set's files; default: the run's, or the cache."""
    images: int = 512
    """Test images for the check, from the first."""
    max_disagreement: float = 0.02
    """Share of them whose prediction may change, of a deterministic graph."""
    false_alarm_rate: float = 0.05
    """Share of clean images that the file's detector may flag; a run's validation images calibrate it."""
    force: bool = False
    """Write the file although it fails the check."""


@dataclass(frozen=True)
class Exported:
    """What was exported, and what a person should know of it.

    Attributes:
        report: of `export_onnx`.
        max_disagreement: what the check allowed.
        range_images: training images that set the ranges of 8-bit outputs.
        undetected: why there is no detector; None where there is one.
    """

    report: ExportReport
    max_disagreement: float
    range_images: int
    undetected: str | None


def export_path(options: ExportOptions) -> Exported:
    """Return what was exported.

    Raises:
        squint.InputError: the extra `onnx` is missing, no such system, or what `export_onnx` refuses.
    """
    check_number("images", options.images, 1, whole=True)
    check_number("max_disagreement", options.max_disagreement, 0, 1)
    check_output(options.output)
    if options.output is not None and options.output.suffix != ".onnx":
        raise InputError(f"output is {options.output}; allowed: a file that ends in .onnx")
    fewest = minimum_examples(options.false_alarm_rate)
    target = load_target(options.path, options.system)
    if target.recipe is not None and options.dataset not in (None, target.recipe.dataset):
        raise InputError(
            f"dataset is {options.dataset!r}; allowed for {options.path}: its own, {target.recipe.dataset}"
        )
    # Before the data: they may have to be downloaded.
    prepared = prepare(target.ens, options.rounding, options.opset)
    test = train = clean = None
    if target.recipe is not None or options.dataset is not None:
        splits = data_for(target, options.dataset, options.data_dir)
        test, train, clean = splits.test, splits.train, _first(splits.validation, DETECTOR_IMAGES)
    ranging = None if train is None else _first(train, RANGE_IMAGES).float_images()
    undetected = _undetected(target, prepared, 0 if clean is None else len(clean), fewest)
    output = options.output or _default_output(options.path, target, prepared.rounding)
    try:
        with held(output.parent):
            report = export_onnx(
                target.ens,
                output,
                options.rounding,
                images=None if test is None else _first(test, options.images).float_images(),
                labels=None if test is None else _first(test, options.images).labels,
                range_images=ranging,
                detector_images=None if undetected or clean is None else clean.float_images(),
                false_alarm_rate=options.false_alarm_rate,
                opset=options.opset,
                saturating=True if options.cpu == "any" else None,
                integer_sums=options.integer_sums,
                max_disagreement=options.max_disagreement,
                force=options.force,
                class_names=None if test is None else test.class_names,
                recipe=_recipe(target),
                robustness=_headline(target),
            )
    except ParityError as error:
        ways = "--no-integer-sums may be closer, " if error.integer_sums else ""
        ways += "" if error.sampled else "--max-disagreement allows more, "
        raise InputError(
            f"the exported graph does not match the ensemble: {error.problem}; {ways}"
            "--force writes it all the same"
        ) from None
    return Exported(report, options.max_disagreement, 0 if ranging is None else len(ranging), undetected)


def _first(data: ImageData, count: int) -> ImageData:
    return data.subset(torch.arange(min(count, len(data))))


def _default_output(path: Path, target: Target, rounding: str) -> Path:
    name = f"{target.name}-{rounding}.onnx"
    if is_shipped(target.file):
        return home(target.file.parent.parent) / name
    return path / name if path.is_dir() else target.file.with_name(name)


def _undetected(target: Target, prepared: Prepared, held_out: int, fewest: int) -> str | None:
    """Return why the file cannot have a detector, or None."""
    if not prepared.can_disagree:
        return "one network and one draw have nothing to disagree with"
    if target.recipe is None:
        return "only a run names images that its training has not seen"
    if held_out < fewest:
        return f"the run held out {held_out} validation images, {fewest} are needed"
    return None


def _recipe(target: Target) -> dict[str, Any] | None:
    """Return what the model card says of the training."""
    recipe = target.recipe
    if recipe is None:
        return None
    return {
        "recipe": recipe.name,
        "config_hash": config_hash(recipe),
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "system": target.name,
    }


def _headline(target: Target) -> dict[str, Any] | None:
    """Return the system's record under its run's headline attack and radius, if it was attacked."""
    run = target.file.parent.parent
    if target.recipe is None or not (run / "results.json").is_file():
        return None
    check_weights(run, target.name)
    results = read_results(run)
    keys = {
        "system": target.name,
        "attack": results.get("headline_attack"),
        "eps": results.get("headline_eps"),
    }
    records = results.get("records")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{run / 'results.json'} holds no records")
    return next((r for r in records if all(r.get(key) == value for key, value in keys.items())), None)


def export_lines(exported: Exported) -> list[str]:
    """Return what was exported, for people."""
    report = exported.report
    lines = [
        f"model: {report.path} ({report.bytes:,} bytes, opset {report.opset}, rounding {report.rounding}; "
        f"{len(report.integer)} layers in integers, {len(report.floating)} in floats)"
    ]
    if report.narrowed:
        lines.append(f"weights of 8 bits rounded to 7, for CPUs without VNNI: {', '.join(report.narrowed)}")
    if report.wide:
        lines.append(f"only for CPUs that add 8-bit products exactly (--cpu any): {', '.join(report.wide)}")
    if exported.range_images and report.integer:
        lines.append(
            "batch normalization is folded into the weights' scales; the ranges of 8-bit outputs are those "
            f"of {exported.range_images} training images"
        )
    if report.parity is None:
        lines.append("not checked against the ensemble: name its data set with --dataset")
    else:
        own = report.parity.accuracy
        lines.append(
            f"checked against the ensemble on {report.parity.n} test images"
            + ("" if own is None else f"; its accuracy {own:.1%}")
        )
        lines += [_compared(each, own, exported.max_disagreement) for each in report.parity.comparisons]
    return [*lines, _detector_line(exported), *_robustness_lines(report.card, report.path)]


def _compared(session: Comparison, own: float | None, allowed: float) -> str:
    parts = []
    if session.accuracy is not None and own is not None:
        parts.append(f"accuracy {session.accuracy:.1%} ({100 * (session.accuracy - own):+.1f} points)")
    if session.disagreement is not None:
        parts.append(f"{session.disagreement:.1%} of predictions differ (allowed {allowed:.1%})")
    if session.max_difference is not None:
        parts.append(f"log probabilities by at most {session.max_difference:.2g}")
    if session.mean_deviation is not None and session.variance_deviation is not None:
        mean, variance = limits(session.n)
        parts.append(
            f"mean over draws {session.mean_deviation:.2f} standard errors off (allowed {mean:.2f}), "
            f"variance {abs(session.variance_deviation):.2f} (allowed {variance:.2f})"
        )
    return f"  graph optimizations {'on' if session.optimized else 'off'}: {', '.join(parts)}"


def _detector_line(exported: Exported) -> str:
    found = exported.report.detector
    if found is None:
        return f"no detector: {exported.undetected}"
    measured = "" if found.measured is None else f"; it flags {found.measured:.1%} of the test images"
    return (
        f"detector: {found.score} above {found.threshold:.3g} nats, false-alarm rate "
        f"{found.false_alarm_rate:.1%} by {found.calibration} validation images{measured}"
    )


def _robustness_lines(card: Mapping[str, Any], path: Path) -> list[str]:
    record = card["robustness"]
    if record is None:
        return ["no robustness record: the model card says untrusted"]
    verdict = "trusted" if record.get("trusted") else "UNTRUSTED"
    figure = (
        f"the ensemble's robustness in the model card: {record.get('robust_accuracy', 0):.1%} under "
        f"{record.get('attack')} at eps {record.get('eps')}, {verdict}"
    )
    if card["robustness_rounding"] != card["rounding"]:
        return [
            f"{figure}, measured with noise, which this file leaves out: it does not hold here; "
            f"squint attack {path} --transfer-from RUN measures the file"
        ]
    return [figure]
