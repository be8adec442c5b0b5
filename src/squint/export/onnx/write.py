"""`export_onnx`: plan, emit, check against the ensemble, then write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from squint._checks import InputError, check_images, check_labels, check_number
from squint._files import write_bytes
from squint._random import noise
from squint.ensemble import Ensemble
from squint.evaluation.detection.calibration import minimum_examples
from squint.export.onnx.detector import ShippedDetector, calibrate_detector
from squint.export.onnx.plan import MemberPlan, Residual, image_channels
from squint.export.onnx.prepared import Prepared, prepare
from squint.export.onnx.runtime import saturates
from squint.export.parity import Parity, check_parity


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        path: the file.
        bytes: its size.
        rounding: "nearest" or "sample"; "nearest" where the ensemble draws nothing.
        opset: version of the operator set.
        integer: products that the runtime computes in integers.
        floating: quantized products that stay in floats.
        narrowed: products whose 8-bit weights were rounded to 7 bits.
        wide: products that are exact only on CPUs that add 8-bit products in 32 bits.
        parity: the comparison with the ensemble; None without images.
        detector: what `predict` flags by; None without.
        card: the model card, plain data.
    """

    path: Path
    bytes: int
    rounding: str
    opset: int
    integer: tuple[str, ...]
    floating: tuple[str, ...]
    narrowed: tuple[str, ...]
    wide: tuple[str, ...]
    parity: Parity | None
    detector: ShippedDetector | None
    card: Mapping[str, Any]


def export_onnx(
    ens: Ensemble,
    path: str | Path,
    rounding: str = "nearest",
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    range_images: Tensor | None = None,
    detector_images: Tensor | None = None,
    false_alarm_rate: float = 0.05,
    opset: int | None = None,
    saturating: bool | None = None,
    integer_sums: bool = True,
    max_disagreement: float = 0.02,
    force: bool = False,
    class_names: Sequence[str] | None = None,
    recipe: Mapping[str, Any] | None = None,
    robustness: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write the whole ensemble as one ONNX graph and return what was exported.

    The graph takes `images` (batch, channels, height, width) in [0, 1], any batch size, and gives
    `log_probability` (batch, classes), the logarithm of the mean probability over members and draws. Batch
    normalization is folded into the integer weights' scales, which is exact. What is approximate: outputs
    that a sum or noise follows pass through 8-bit codes, biases are whole numbers of the finest steps that
    8-bit weights leave them, and weights may have 7 bits (see `saturating`).

    Args:
        ens: a calibrated ensemble of networks of `squint.models`, or of `torch.nn.Sequential`; not changed.
        path: file to write.
        rounding: "nearest" (one deterministic pass) or "sample" (`ens.draws` draws of fresh noise).
        images: (n, ...) real images: they fix the image size and pass the parity gate. None: no gate.
        labels: (n,) their labels, for the accuracies in the report.
        range_images: (n, ...) real images that set the ranges of 8-bit outputs, from training for instance.
            None: `images`; without those, ranges come from batch normalization's own parameters.
        detector_images: (n, ...) clean images that training has not seen. They give the graph the output
            `score` (batch,), the mutual information between prediction, and member and draw, in nats, and
            the model card the threshold above which predictions are flagged. None: no detector.
        false_alarm_rate: share of clean images that the detector may flag, in (0, 1).
        opset: None: the oldest that holds the weights' widths.
        saturating: limit 8-bit weights to 7 bits where products could saturate; None: as this CPU needs.
        integer_sums: let residual sums of a deterministic graph pass through 8-bit codes of their measured
            range, which is faster; False keeps them in floats, as in the ensemble.
        max_disagreement: largest share of images whose deterministic prediction may change.
        force: write although the gate fails.
        class_names: names for the model card.
        recipe: the training's configuration, for the model card.
        robustness: the ensemble's robustness record, with `trusted`, for the model card, which says trusted
            only if the graph draws noise where the ensemble as it is handed over does.

    Raises:
        squint.InputError: before any work: the extra is missing, a layer is not supported, the opset is too
            old; after it: the graph and the ensemble disagree.
    """
    check_number("max_disagreement", max_disagreement, 0, 1)
    prepared = prepare(ens, rounding, opset)
    _check_examples(images, labels, range_images=range_images, detector_images=detector_images)
    _check_detector(prepared, detector_images, false_alarm_rate)
    twin, plans = prepared.twin, prepared.plans
    saturating = saturates() if saturating is None else saturating

    from squint.export.onnx.build import build_model, versions

    measured = images if range_images is None else range_images
    with torch.no_grad():
        ranges = {} if measured is None else measured_ranges(twin, plans, measured, sums=integer_sums)
        built = build_model(
            plans,
            prepared.draws,
            opset=prepared.opset,
            saturating=saturating,
            ranges=ranges,
            image_shape=_image_shape(plans, measured),
            with_score=detector_images is not None,
        )
    plain = built.with_card(
        {"squint_version": "", "num_classes": built.num_classes, "exact_without_vnni": True}
    )
    parity = detector = None
    if images is not None:
        parity = check_parity(
            twin,
            plain,
            images,
            labels,
            rounding=prepared.rounding,
            max_disagreement=max_disagreement,
            integer_sums=integer_sums and prepared.rounding == "nearest" and bool(_sums(plans)),
            force=force,
        )
    if detector_images is not None:
        detector = calibrate_detector(plain, detector_images, false_alarm_rate, images)
    card = {
        **versions(),
        "rounding": prepared.rounding,
        "draws": max(built.draws),
        "members": len(plans),
        "num_classes": built.num_classes,
        "exact_without_vnni": not built.wide,
        "parity": None if parity is None else asdict(parity),
        "class_names": None if class_names is None else list(class_names),
        "detector": None if detector is None else asdict(detector),
        "recipe": None if recipe is None else dict(recipe),
        "robustness": None if robustness is None else dict(robustness),
        "robustness_rounding": None if robustness is None else prepared.own_rounding,
        "trusted": bool((robustness or {}).get("trusted", False))
        and prepared.own_rounding == prepared.rounding,
    }
    content = built.with_card(card)
    write_bytes(Path(path), content)
    return ExportReport(
        Path(path),
        len(content),
        prepared.rounding,
        prepared.opset,
        built.integer,
        built.floating,
        built.narrowed,
        built.wide,
        parity,
        detector,
        card,
    )


def _check_detector(prepared: Prepared, images: Tensor | None, false_alarm_rate: float) -> None:
    needed = minimum_examples(false_alarm_rate)
    if images is None:
        return
    if not prepared.can_disagree:
        raise InputError(
            "detector_images were given, but one network without noise has nothing to disagree with: leave "
            "them out, or export with rounding='sample' or several members"
        )
    if len(images) < needed:
        raise InputError(
            f"detector_images has {len(images)}; a false-alarm rate of {false_alarm_rate:g} needs {needed} "
            "or more"
        )


def measured_ranges(
    twin: Ensemble, plans: Sequence[MemberPlan], images: Tensor, *, sums: bool
) -> dict[str, tuple[float, float]]:
    """Return smallest and largest output of every product, and with `sums` of every residual block."""
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str, module: nn.Module, relu: bool) -> Any:
        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            low, high = (float(v) for v in torch.aminmax(output))
            if relu:
                low, high = max(low, 0.0), max(high, 0.0)
            old = ranges.get(name, (low, high))
            ranges[name] = (min(low, old[0]), max(high, old[1]))

        return module.register_forward_hook(keep)

    products = [product for plan in plans for product in plan.products()]
    handles = [watch(p.name, p.layer if p.norm is None else p.norm, p.relu) for p in products]
    blocks = _sums(plans) if sums else []
    handles += [watch(block.name, block.block, True) for block in blocks]
    try:
        with noise(torch.Generator().manual_seed(0)):
            for part in torch.split(images.float().cpu(), 256):
                twin.member_logits(part, 1)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _sums(plans: Sequence[MemberPlan]) -> list[Residual]:
    return [step for plan in plans for step in plan.steps if isinstance(step, Residual)]


def _check_examples(images: Tensor | None, labels: Tensor | None, **others: Tensor | None) -> None:
    given = {name: each for name, each in {"images": images, **others}.items() if each is not None}
    for name, each in given.items():
        check_images(each, name)
        first, *_ = given.values()
        if each.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{name} are of shape {tuple(each.shape[1:])}, {next(iter(given))} of "
                f"{tuple(first.shape[1:])}; allowed: one size"
            )
    if labels is not None:
        if images is None:
            raise InputError("labels were given without images; give both, or images alone")
        check_labels(labels, len(images))


def _image_shape(plans: Sequence[MemberPlan], images: Tensor | None) -> list[int | str]:
    if images is not None:
        return list(images.shape[1:])
    channels = image_channels(plans)
    if channels is None:
        first = cast(nn.Linear, next(plans[0].products()).layer)
        return [first.in_features]
    return [channels, "height", "width"]
